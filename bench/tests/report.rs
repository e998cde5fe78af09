//! Reports as their readers see them: what the page says, that nothing in a result can break it, and what a browser makes
//! of it.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{self, Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use linerate_bench::report::render;
use serde_json::{Value, json};

const BENCH: &str = env!("CARGO_BIN_EXE_linerate-bench");

/// Longest that a browser may take for a page; it needs a second or two.
const BROWSER_TIME_MAX: Duration = Duration::from_secs(60);

/// A folder of this test's own, which is removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("linerate-report-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A result folder in it.
    fn result(&self, name: &str, result: &Value) -> PathBuf {
        let folder = self.0.join(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("result.json"), result.to_string()).unwrap();
        folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/report").join(name)
}

/// Results that were kept before there were reports.
fn kept(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results").join(format!("2026-11-20-{name}"))
}

/// Every kind of result, and several side by side.
fn pages() -> Vec<(String, Vec<PathBuf>)> {
    let fixtures = ["run-a", "run-b", "compare", "sweep", "search", "peers"].map(fixture);
    let older = [
        "loopback-verify-1",
        "loopback-ceiling-udp-1",
        "loopback-check-faults-1",
        "veth-1",
        "store",
        "cache",
        "cluster-s1c1-10gbit-1",
        "cluster-s4c4-check",
    ]
    .map(kept);
    let repeats = ["verify", "tcp"]
        .iter()
        .flat_map(|name| (1..=3).map(move |run| kept(&format!("loopback-{name}-{run}"))));
    let single = fixtures
        .iter()
        .chain(&older)
        .map(|folder| (folder.file_name().unwrap().to_string_lossy().into_owned(), vec![folder.clone()]));
    let mut pages: Vec<_> = single.collect();
    pages.push(("two runs".into(), vec![fixture("run-a"), fixture("run-b")]));
    pages.push(("repeats".into(), repeats.collect()));
    pages.push(("of all kinds".into(), fixtures.into_iter().chain(older).collect()));
    pages
}

fn bench(arguments: &[&OsStr], folder: &Path) -> Output {
    Command::new(BENCH).args(arguments).current_dir(folder).output().unwrap()
}

fn words<'a>(arguments: &'a [&'a str]) -> Vec<&'a OsStr> {
    arguments.iter().map(OsStr::new).collect()
}

/// The elements of a page or a drawing: fails when one is not closed, closed twice, or interleaved with another, and
/// when an attribute is not quoted.
fn check_elements(page: &str) {
    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page;
    while let Some((_, from_tag)) = rest.split_once('<') {
        let (tag, after) = from_tag.split_once('>').expect("a tag is not closed");
        rest = after;
        assert!(!tag.contains('<'), "a tag within a tag: {tag}");
        assert_eq!(tag.matches('"').count() % 2, 0, "an open quote in {tag}");
        let name = tag.trim_end_matches('/').split([' ', '\n']).next().unwrap();
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed), "closed where it is not open");
        } else if !VOID.contains(&name) && !tag.ends_with('/') {
            open.push(name);
            if name == "style" {
                rest = rest.split_once("</style>").expect("the style ends").1;
                open.pop();
            }
        }
    }
    assert!(open.is_empty(), "not closed: {open:?}");
}

/// Fails when the page could load anything.
fn check_self_contained(page: &str) {
    assert!(page.contains(
        "http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\""
    ));
    let lower = page.to_lowercase();
    for reference in [
        "<script",
        "<link",
        "<img",
        "<iframe",
        "<object",
        "<embed",
        "<base",
        "@import",
        "url(",
        " src=",
        " href=",
        "javascript:",
        " onload",
        " onerror",
    ] {
        assert!(!lower.contains(reference), "{reference} in the page");
    }
}

/// Goal: all kinds of results, of this version and older ones, one by one and together, make a whole page that needs
/// nothing else. Method: render each; tags are balanced, nothing refers to elsewhere, no number came out as none, each has
/// a table or a chart, and each chart a title and a description.
#[test]
fn every_kind_makes_a_whole_page() {
    for (name, folders) in pages() {
        let page = render(&folders).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        check_elements(&page);
        check_self_contained(&page);
        assert!(page.starts_with("<!DOCTYPE html>\n<html lang=\"en\">"), "{name}");
        assert!(!page.contains("NaN") && !page.contains(">inf"), "{name}");
        assert!(page.contains("<caption>") || page.contains("<svg class=\"chart\""), "{name} shows nothing");
        let charts = page.matches("<svg class=\"chart\"").count();
        let (titles, descriptions) = (page.matches("<title id=").count(), page.matches("<desc id=").count());
        assert_eq!((titles, descriptions), (charts, charts), "{name}");
    }
}

/// Goal: the charts are those that the results have data for. Method: the titles of each fixture's page.
#[test]
fn charts_are_those_of_the_kind() {
    for (name, titles) in [
        (
            "run-a",
            &[
                "Operations over time",
                "Percentiles over time",
                "How many operations took no longer",
                "The slowest operations",
                "Time in which clients had work",
                "CPU time of the servers",
                "CPU 0 (server)",
                "CPU 1 (client)",
                "Bits on lo",
                "Datagrams",
                "Datagrams lost, and requests sent again",
            ][..],
        ),
        ("compare", &["Median of the rounds, with their spread", "Round by round"]),
        ("sweep", &["Throughput by batch", "p99 by batch"]),
        ("search", &["p99 by offered rate", "Operations over time"]),
        ("peers", &["Operations per second"]),
    ] {
        let page = render(&[fixture(name)]).unwrap();
        for title in titles {
            assert!(page.contains(&format!("<h3>{title}</h3>")), "{name} has no chart {title}");
        }
    }
}

/// Goal: what is shown is what was measured, and what is partial says so first. Method: numbers of the fixtures as the
/// page writes them.
#[test]
fn numbers_are_those_of_the_result() {
    let page = |name: &str| render(&[fixture(name)]).unwrap();
    let result = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(fixture(name).join("result.json")).unwrap()).unwrap()
    };
    let run = result("run-a");
    let run_page = page("run-a");
    let million = run["ops_per_sec"].as_f64().unwrap() / 1e6;
    assert!(run_page.contains(&format!("<strong>{million:.1} M op/s</strong>")), "{million}");
    for part in [
        "p50 146 µs, p99 197 µs",
        "<td>146.0</td>",
        "<td>4,612</td>",
        "31,200,000 op/s",
        "99.5 % of one core",
        "Limited by the client",
        "0123456789ab",
        "AMD EPYC",
        "eth0, virtio_net, 10000 Mbit/s, MTU 1500",
        "throughput not applied",
        "linerate-bench run --keep run-a",
    ] {
        assert!(run_page.contains(part), "{part}");
    }
    for second in run["series"].as_array().unwrap() {
        let ops = second["ops_per_sec"].as_u64().unwrap();
        let grouped = format!("{},{:03},{:03}", ops / 1_000_000, ops / 1_000 % 1_000, ops % 1_000);
        assert!(run_page.contains(&format!("<td>{grouped}</td>")), "{grouped}");
    }
    assert!(!run_page.contains("PARTIAL"));
    assert!(page("sweep").contains("<li>PARTIAL: "));
    assert!(page("sweep").contains("<td>interrupted before it began</td>"));
    assert!(
        page("compare")
            .contains("udp does 1.17 times what tcp does (rounds: 1.13 to 1.20), larger than the noise.")
    );
    assert!(page("compare").contains("xdp: the interface lo has no driver for it"));
    assert!(page("search").contains("the highest rate that keeps p99 within 500 µs and no loss"));
    assert!(page("peers").contains("linerate does 13.1 times what redis does."));
    assert!(page("peers").contains("valkey-server is not installed"));
}

/// Goal: several runs get a verdict, and a warning where the machine may be the reason. Method: the fixtures, kept
/// repeats whose cores were at different distances, and a run on another kernel.
#[test]
fn several_runs_get_a_verdict() {
    let scratch = Scratch::new();
    let page = render(&[fixture("run-a"), fixture("run-b")]).unwrap();
    assert!(page.contains("run-b and run-a: not compared, as the one is a closed loop"), "{page}");
    // Each run's own verdict is there, too.
    assert!(page.contains("<li>run-a: Limited by the client"), "{page}");
    let mut closed: Value =
        serde_json::from_slice(&fs::read(fixture("run-a").join("result.json")).unwrap()).unwrap();
    (closed["loop"], closed["offered_ops_per_sec"]) = (json!("closed"), Value::Null);
    let page = render(&[scratch.result("closed", &closed), fixture("run-b")]).unwrap();
    assert!(page.contains("run-b and closed: no difference beyond the noise (−"), "{page}");
    let repeats: Vec<_> = ["verify", "check-faults"]
        .iter()
        .flat_map(|name| (1..=3).map(move |run| kept(&format!("loopback-{name}-{run}"))))
        .collect();
    let page = render(&repeats).unwrap();
    assert!(page.contains(
        "2026-11-20-loopback-check-faults (3 runs) is slower than 2026-11-20-loopback-verify (3 runs) by 23.7 % ± 7.0 %: larger than the noise, judged by the repeats."
    ), "{page}");
    assert!(page.contains("A cache line took from 88 ns to 374 ns"), "{page}");
    let page = render(&[kept("loopback-verify-1"), kept("loopback-verify-2")]).unwrap();
    assert!(
        page.contains("All are repeats of one configuration on one machine: median 31.3 M op/s"),
        "{page}"
    );
    let page = render(&[kept("loopback-verify-1"), kept("loopback-tcp-1")]).unwrap();
    assert!(page.contains("whether that is more than noise cannot be told"), "{page}");
    let other = json!({"kind": "run", "ops_per_sec": 3e7, "config": {"threads": 2}, "environment": {"kernel": "5.15"}});
    let page = render(&[fixture("run-a"), scratch.result("other", &other)]).unwrap();
    assert!(page.contains("Not the same kernel: 5.15; 6.18.44."), "{page}");
    assert!(page.contains("<h3>Throughput by threads</h3>"), "{page}");
}

/// Puts a text in place of each string of a result, but for what says its kind and shape.
fn with_texts(value: &Value, text: &str) -> Value {
    match value {
        Value::String(_) => text.into(),
        Value::Array(items) => items.iter().map(|item| with_texts(item, text)).collect(),
        Value::Object(fields) => {
            let keep = |name: &str| ["kind", "series", "points", "values", "axes"].contains(&name);
            let field = |(name, field): (&String, &Value)| {
                let is_text = field.is_string() && keep(name);
                let name_too = if matches!(&**name, "udp" | "udp-plain" | "redis") {
                    format!("{text}{name}")
                } else {
                    name.clone()
                };
                (name_too, if is_text { field.clone() } else { with_texts(field, text) })
            };
            Value::Object(fields.iter().map(field).collect())
        }
        other => other.clone(),
    }
}

/// Goal: a result from elsewhere cannot put anything into the page but text. Method: results of all kinds with markup in place
/// of every string and in the names of folders, commands and facts.
#[test]
fn hostile_text_stays_text() {
    let scratch = Scratch::new();
    let hostile =
        "</style></title></svg><script>alert(1)</script><img src=x onerror=\"alert('2')\">&\u{202e}\u{0}";
    let mut folders = Vec::new();
    for (name, originals) in pages().into_iter().filter(|(_, folders)| folders.len() == 1) {
        let original: Value =
            serde_json::from_slice(&fs::read(originals[0].join("result.json")).unwrap()).unwrap();
        let folder = scratch.result(&format!("{name} <script>'\"&"), &with_texts(&original, hostile));
        let manifest = json!({"command": ["x", hostile], "seed": hostile, "environment": {"kernel": hostile}, "machine": {hostile: hostile},
            "nic": {"driver": hostile}, "tune": {"profile": hostile}});
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        fs::write(folder.join("machine.txt"), format!("<b>{hostile}: <i>{hostile}\n")).unwrap();
        let page = render(std::slice::from_ref(&folder)).unwrap();
        check_elements(&page);
        assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("<b>"), "{name}");
        assert!(page.contains("alert(1)"), "{name}: the text is gone");
        folders.push(folder);
    }
    let page = render(&folders).unwrap();
    check_elements(&page);
    assert!(!page.contains("<script") && !page.contains("<img"));
}

/// The result with lists no longer than their first two: what holds for these holds for the others.
fn with_short_lists(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().take(2).map(with_short_lists).collect(),
        Value::Object(fields) => Value::Object(
            fields.iter().map(|(name, field)| (name.clone(), with_short_lists(field))).collect(),
        ),
        other => other.clone(),
    }
}

/// Where there is something: each field, and the first of each list.
fn pointers(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = format!("{path}/{}", name.replace('~', "~0").replace('/', "~1"));
                pointers(field, &path, found);
                found.push(path);
            }
        }
        Value::Array(items) => {
            if let Some(first) = items.first() {
                pointers(first, &format!("{path}/0"), found);
                found.push(format!("{path}/0"));
            }
        }
        _ => {}
    }
}

/// Takes away what is there.
fn remove(value: &mut Value, pointer: &str) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match value.pointer_mut(parent).unwrap() {
        Value::Object(fields) => {
            fields.remove(&name.replace("~1", "/").replace("~0", "~"));
        }
        Value::Array(items) => {
            items.remove(0);
        }
        other => panic!("{pointer}: {other} has nothing in it"),
    }
}

/// Goal: whatever a field holds, a page is made: a wrong type is "not measured". Method: each field of each kind, of lists the
/// first, in turn left out, alone and beside a whole result, and replaced by each of null, a text, a list, an object and extreme
/// numbers.
#[test]
fn a_field_of_any_type_breaks_nothing() {
    let scratch = Scratch::new();
    let replacements =
        [json!(null), json!("x"), json!([1, "y"]), json!({"a": {}}), json!(-1e308), json!(u64::MAX)];
    for name in ["run-b", "compare", "sweep", "search", "peers"] {
        let original: Value =
            serde_json::from_slice(&fs::read(fixture(name).join("result.json")).unwrap()).unwrap();
        let original = with_short_lists(&original);
        let other = scratch.result("other", &original);
        let check = |pointer: &str, folders: &[PathBuf]| {
            let page = render(folders).unwrap_or_else(|error| panic!("{name} {pointer}: {error:#}"));
            assert!(!page.contains("NaN") && !page.contains(">inf"), "{name} {pointer}");
        };
        let mut found = Vec::new();
        pointers(&original, "", &mut found);
        for pointer in found.iter().filter(|pointer| *pointer != "/kind") {
            let replaced = replacements.iter().map(|replacement| {
                let mut changed = original.clone();
                *changed.pointer_mut(pointer).unwrap() = replacement.clone();
                changed
            });
            let mut without = original.clone();
            remove(&mut without, pointer);
            for changed in replaced.chain([without.clone()]) {
                check(pointer, &[scratch.result("changed", &changed)]);
            }
            check(pointer, &[other.clone(), scratch.result("changed", &without)]);
        }
        let folder = scratch.result("bare", &json!({"kind": original["kind"]}));
        check_elements(&render(&[folder.clone(), folder]).unwrap());
    }
}

/// Goal: the command writes a page where it was told to, or beside the result, says where, and leaves nothing else.
/// Method: the program, with and without -o.
#[test]
fn the_command_writes_one_file() {
    let scratch = Scratch::new();
    let folder = scratch.result("r", &json!({"kind": "run", "ops_per_sec": 5.0}));
    let output = bench(&words(&["report", "r"]), &scratch.0);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "written to r/report.html\n");
    let page = fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("5 op/s"));
    assert!(bench(&words(&["report", "r", "-o", "x.html"]), &scratch.0).status.success());
    assert_eq!(fs::read_to_string(scratch.0.join("x.html")).unwrap(), page);
    assert!(bench(&words(&["report", "r", "r"]), &scratch.0).status.success());
    let mut files: Vec<_> =
        fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["r", "report.html", "x.html"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
}

/// Goal: what cannot be done is one sentence and a non-zero exit, and an older report stays as it was. Method: damaged and
/// missing results, and targets that cannot be written.
#[test]
fn refusals_are_sentences_and_change_nothing() {
    let scratch = Scratch::new();
    let broken = scratch.result("broken", &json!({}));
    fs::write(broken.join("result.json"), "{\"kind\": \"run\", ").unwrap();
    fs::write(broken.join("report.html"), "older").unwrap();
    scratch.result("fine", &json!({"kind": "run"}));
    for (arguments, reason) in [
        (&["report", "broken"][..], "\"broken/result.json\" is damaged: EOF"),
        (&["report", "fine", "broken"], "\"broken/result.json\" is damaged: EOF"),
        (&["report", "."], "\".\" is no result folder: it has no result.json"),
        (&["report", "nowhere"], "cannot read the result folder \"nowhere\": No such file"),
        (&["report", "fine", "-o", "nowhere/x.html"], "cannot write \"nowhere/x.html\": No such file"),
        (&["report", "fine", "-o", "broken"], "\"broken\" is a folder; name a file in it"),
    ] {
        let output = bench(&words(arguments), &scratch.0);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(reason) && error.lines().count() == 1, "{error}");
    }
    assert_eq!(fs::read_to_string(broken.join("report.html")).unwrap(), "older");
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 2, "something was left");
}

/// Goal: the README's parts are made of the results, and a check finds what differs. Method: a small tree with one table, made,
/// checked, and changed by hand in the README, in the picture and in a result.
#[test]
fn the_readme_is_made_of_results_and_checked() {
    let scratch = Scratch::new();
    let root = &scratch.0;
    let run = |name: &str, ops: f64| {
        let latency = json!({"p50": 146.4, "p99": 197.0});
        let environment = json!({"date": "2026-11-20T14:05:44Z", "kernel": "6.18", "cpu_model": "A CPU", "cores": 2, "commit": "abc"});
        scratch.result(
            &format!("results/{name}"),
            &json!({"kind": "run", "ops_per_sec": ops, "latency_us": latency, "environment": environment}),
        );
    };
    run("a-1", 31.04e6);
    run("a-2", 30.0e6);
    run("a-3", 32.06e6);
    let toml = "[[table]]\nname = \"t\"\npicture = \"img/t.svg\"\ntitle = \"A | title\"\n\
                [[table.row]]\nlabel = \"UDP | <b>\"\nruns = [\"a-1\", \"a-2\", \"a-3\"]\n";
    fs::write(root.join("results/readme.toml"), toml).unwrap();
    let begin = "<!-- generated: t from results/readme.toml -->";
    fs::write(root.join("README.md"), format!("# x\n\n{begin}\nold\n<!-- end -->\n\nrest\n")).unwrap();
    let check = || bench(&words(&["readme", "--check"]), root);
    let make = || {
        let output = bench(&words(&["readme"]), root);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let output = check();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains("README.md\" is not as the kept results have it; run `linerate-bench readme`"),
        "{error}"
    );
    assert!(!root.join("img").exists(), "a check writes nothing");
    make();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.starts_with(&format!("# x\n\n{begin}\n| | M op/s, median |")), "{readme}");
    assert!(readme.ends_with("<!-- end -->\n\nrest\n"), "{readme}");
    assert!(readme.contains("| UDP \\| \\<b\\> | 31.0 | 30.0 – 32.1 | 146 / 197 |\n"), "{readme}");
    assert!(
        readme.contains("Medians of 3 runs each, on A CPU with 2 cores, Linux 6.18, commit abc, 2026-11-20;"),
        "{readme}"
    );
    assert!(readme.contains("![A \\| title](img/t.svg)"), "{readme}");
    let svg = fs::read_to_string(root.join("img/t.svg")).unwrap();
    check_elements(&svg);
    assert!(
        svg.starts_with("<svg xmlns=")
            && svg.contains("prefers-color-scheme:dark")
            && svg.contains("31.0 M op/s"),
        "{svg}"
    );
    assert!(check().status.success());
    for (file, change) in [("README.md", "31.0"), ("img/t.svg", "31.0")] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        fs::write(root.join(file), text.replace(change, "99.0")).unwrap();
        assert_eq!(check().status.code(), Some(1), "{file}");
        make();
        assert_eq!(fs::read_to_string(root.join(file)).unwrap(), text);
    }
    run("a-1", 40e6);
    assert_eq!(check().status.code(), Some(1));
    for (text, reason) in [
        ("no mark", "it has no generated part"),
        ("<!-- generated: t from results/readme.toml -->", "the generated part \"t\" has no <!-- end -->"),
        ("<!-- generated: t -->\n<!-- end -->", "must say NAME from FILE"),
        ("<!-- generated: u from results/readme.toml -->\n<!-- end -->", "has no table \"u\""),
        ("<!-- generated: t from nowhere -->\n<!-- end -->", "cannot read"),
    ] {
        fs::write(root.join("README.md"), text).unwrap();
        let output = check();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && error.contains(reason), "{text}: {error}");
    }
}

/// Goal: a table of ports is made of what results of `wire` say of each. Method: the kept runs on a virtual cable, and rows that
/// cannot be made.
#[test]
fn a_table_of_ports_is_made_of_results() {
    let scratch = Scratch::new();
    let make = |rows: &str| {
        let runs: Vec<_> = (1..=3).map(|run| kept(&format!("veth-{run}")).display().to_string()).collect();
        let rows = rows.replace("RUNS", &format!("runs = {runs:?}"));
        fs::write(scratch.0.join("t.toml"), format!("[[table]]\nname = \"t\"\n{rows}")).unwrap();
        fs::write(scratch.0.join("README.md"), "<!-- generated: t from t.toml -->\n<!-- end -->\n").unwrap();
        let output = bench(&words(&["readme"]), &scratch.0);
        let readme = fs::read_to_string(scratch.0.join("README.md")).unwrap();
        (output.status.code(), readme, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let udp = "[[table.row]]\nlabel = \"UDP\"\nport = \"udp\"\nRUNS\n";
    let shaped = "[[table.row]]\nlabel = \"shaped\"\nport = \"udp\"\nshaped = true\nRUNS\n";
    let tcp = "[[table.row]]\nlabel = \"TCP\"\nport = \"tcp\"\nRUNS\n";
    let (code, readme, error) = make(&[udp, shaped, tcp].concat());
    assert_eq!(code, Some(0), "{error}");
    for line in [
        "| | M op/s, median | slowest to fastest | M reply datagrams/s | share of 10 Gbit/s, % |\n",
        "| UDP | 9.5 | 9.0 – 9.8 | 0.87 | 105 |\n",
        "| shaped | 8.7 | 8.7 – 8.7 | 0.80 | 97 |\n",
        "| TCP | 9.3 | 9.3 – 9.5 | | 100 |\n",
    ] {
        assert!(readme.contains(line), "{line} not in {readme}");
    }
    for (rows, reason) in [
        (udp.replace("\"udp\"", "\"tea\""), "has no operations per second of the port \"tea\""),
        (format!("{udp}[[table.row]]\nlabel = \"x\"\nRUNS\n"), "has no operations per second"),
    ] {
        let (code, readme, error) = make(&rows);
        assert!(code == Some(2) && error.contains(reason) && error.lines().count() == 1, "{error}");
        assert_eq!(readme.lines().count(), 2);
    }
}

/// A browser that is ended and reaped with the test, whatever happens.
struct Browser {
    child: Child,
    profile: Scratch,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Browser {
    /// The document of a page after its scripts have run. `dark` is the scheme that the reader prefers.
    fn document(program: &Path, page: &Path, is_dark: bool) -> String {
        let profile = Scratch::new();
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-extensions",
            "--disable-dev-shm-usage",
            "--window-size=1400,1000",
            "--virtual-time-budget=4000",
            "--dump-dom",
        ];
        let child = Command::new(program)
            .args(flags)
            .arg(format!("--user-data-dir={}", profile.0.display()))
            .arg(format!("--blink-settings=preferredColorScheme={}", if is_dark { 0 } else { 1 }))
            .arg(format!("file://{}", page.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut browser = Self { child, profile };
        let mut stdout = browser.child.stdout.take().unwrap();
        // Read beside, so that a full pipe does not hold it up.
        let reader = thread::spawn(move || {
            let mut document = String::new();
            stdout.read_to_string(&mut document).map(|_| document)
        });
        let begin = Instant::now();
        while browser.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < BROWSER_TIME_MAX, "the browser did not end in {BROWSER_TIME_MAX:?}");
            thread::sleep(Duration::from_millis(20));
        }
        let document = reader.join().unwrap().unwrap();
        assert!(browser.profile.0.exists());
        document
    }
}

/// The browser, when there is one. With `LINERATE_BROWSER=required` there has to be.
fn browser() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let found = env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|file| file.is_file());
    if found.is_none() {
        let reason = "no Chromium (chromium, chromium-browser, google-chrome) is installed";
        assert!(
            env::var("LINERATE_BROWSER").as_deref() != Ok("required"),
            "{reason}, and LINERATE_BROWSER=required"
        );
        eprintln!("not run: {reason}");
    }
    found
}

/// Looks at the pages in frames of both widths, and writes down what is wrong with each.
const LOOK: &str = r#"
const wrong = [], seen = {frames: 0, charts: 0, marks: 0, texts: 0};
const rgb = colour => { const part = colour.match(/[\d.]+/g).map(Number); return part.length > 3 && part[3] === 0 ? null : part; };
const luminance = colour => {
  const [r, g, b] = colour.slice(0, 3).map(part => { part /= 255; return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((x, y) => y - x); return (x + 0.05) / (y + 0.05); };
const ground = (element, view) => {
  for (; element; element = element.parentElement) {
    const colour = rgb(view.getComputedStyle(element).backgroundColor);
    if (colour) return colour;
  }
  return [255, 255, 255];
};
function look(frame) {
  const [view, page, width] = [frame.contentWindow, frame.contentDocument, frame.clientWidth];
  const say = text => wrong.push(`${frame.title} at ${width}: ${text}`);
  seen.frames++;
  if (view.matchMedia('(prefers-color-scheme: dark)').matches !== DARK) say('the scheme is not what was asked for');
  if (luminance(ground(page.body, view)) < 0.5 !== DARK) say('the ground is not of the scheme');
  for (const fold of page.querySelectorAll('details')) fold.open = true;
  const root = page.scrollingElement;
  if (root.scrollWidth > width) say(`scrolls sideways: ${root.scrollWidth}`);
  for (const element of page.querySelectorAll('body *:not(svg *)')) {
    const box = element.getBoundingClientRect();
    if (!element.closest('.scroll > *') && (box.right > width + 0.5 || box.left < -0.5)) say(`${element.tagName} reaches from ${box.left} to ${box.right}`);
  }
  const texts = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  const checked = new Set();
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || checked.has(element) || ['title', 'desc'].includes(element.localName)) continue;
    checked.add(element);
    seen.texts++;
    const style = view.getComputedStyle(element);
    const ratio = contrast(rgb(element.localName === 'text' ? style.fill : style.color), ground(element, view));
    if (ratio < 4.5) say(`contrast ${ratio.toFixed(2)} of "${node.data.slice(0, 30)}"`);
  }
  for (const chart of page.querySelectorAll('svg.chart')) {
    seen.charts++;
    const box = chart.getBoundingClientRect(), name = chart.querySelector('title').textContent;
    if (box.width < 200 || box.height < 80) say(`chart ${name} is ${box.width} × ${box.height}`);
    if (chart.getAttribute('role') !== 'img' || !chart.getAttribute('aria-labelledby').split(' ').every(id => page.getElementById(id)?.textContent)) say(`chart ${name} has no words`);
    const marks = chart.querySelectorAll('.mark');
    if (!marks.length) say(`chart ${name} shows nothing`);
    for (const mark of [...marks, ...chart.querySelectorAll('text')]) {
      const part = mark.getBoundingClientRect();
      seen.marks++;
      if (part.left < box.left - 1 || part.top < box.top - 1 || part.right > box.right + 1 || part.bottom > box.bottom + 1) say(`in chart ${name} ${mark.outerHTML.slice(0, 90)} lies outside`);
      if (mark.localName === 'text') continue;
      const style = view.getComputedStyle(mark);
      const colour = rgb(style.fill === 'none' ? style.stroke : style.fill);
      if (contrast(colour, ground(chart, view)) < 3) say(`a mark of chart ${name} is hardly seen`);
    }
  }
  const loaded = view.performance.getEntriesByType('resource').map(entry => entry.name);
  if (loaded.length) say(`it loads ${loaded}`);
}
addEventListener('load', () => {
  try { document.querySelectorAll('iframe').forEach(look); } catch (error) { wrong.push(`the look failed: ${error.stack}`); }
  document.body.textContent = '';
  const result = document.createElement('pre');
  result.textContent = 'RESULT' + JSON.stringify({wrong: wrong.slice(0, 100), seen}) + 'END';
  document.body.append(result);
});
"#;

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

/// Goal: a reader with a phone or a wide screen, in the dark or in the light, sees all of every page: nothing reaches beyond
/// it, every text has a contrast of 4.5 : 1 and every mark one of 3 : 1 to what is behind it, charts have size and keep their
/// marks, and nothing is loaded. Method: the pages in frames of 360 and 1280 pixels of a headless Chromium, looked at by a script
/// outside of them, once in each scheme; one page has names that are too long for any place, one long numbers, and from each of some broken ones the look must find what is wrong with it.
#[test]
fn a_browser_shows_all_of_every_page() {
    let Some(program) = browser() else { return };
    let scratch = Scratch::new();
    let long = "a-name-of-a-result-without-any-place-to-break-it".repeat(4);
    let original: Value =
        serde_json::from_slice(&fs::read(fixture("compare").join("result.json")).unwrap()).unwrap();
    let folder = scratch.result(&long, &with_texts(&original, &long));
    let mut all: Vec<(String, String)> =
        pages().into_iter().map(|(name, folders)| (name, render(&folders).unwrap())).collect();
    all.push(("long names".to_owned(), render(&[folder]).unwrap()));
    let mut slow: Value =
        serde_json::from_slice(&fs::read(fixture("run-b").join("result.json")).unwrap()).unwrap();
    slow["latency_cdf"] =
        json!([[10.0, 0.5], [5e3, 0.99], [9e5, 0.999_999_9], [2e6, 0.999_999_99], [6e6, 1.0]]);
    slow["series"][0]["latency_us"]["max"] = json!(6e6);
    all.push(("long labels".to_owned(), render(&[scratch.result("slow", &slow)]).unwrap()));
    for is_dark in [false, true] {
        let look = |pages: &[(String, String)]| -> Value {
            let mut html = format!(
                "<!DOCTYPE html><meta charset=\"utf-8\"><script>const DARK = {is_dark};{LOOK}</script><body>"
            );
            for (name, page) in pages {
                for width in [360, 1280] {
                    html += &format!(
                        "<iframe title=\"{}\" style=\"border:0;width:{width}px;height:800px\" srcdoc=\"{}\"></iframe>",
                        escaped(name),
                        escaped(page)
                    );
                }
            }
            let file = scratch.0.join("look.html");
            fs::write(&file, html).unwrap();
            let document = Browser::document(&program, &file, is_dark);
            let result =
                document.split_once("<pre>RESULT").and_then(|(_, rest)| rest.split_once("END</pre>"));
            let (result, _) = result.unwrap_or_else(|| {
                panic!("the browser did not look: {}", &document[..document.len().min(500)])
            });
            serde_json::from_str(&unescaped(result)).unwrap()
        };
        let result = look(&all);
        assert_eq!(result["wrong"], json!([]), "dark: {is_dark}");
        let seen = |what: &str| result["seen"][what].as_u64().unwrap();
        assert_eq!(seen("frames"), 2 * all.len() as u64);
        assert!(seen("charts") > 100 && seen("marks") > 1000 && seen("texts") > 1000, "{result}");

        let breaks = [
            ("main{max-width:1120px", "main{width:1400px", "scrolls sideways"),
            ("--soft:", "--soft:var(--line);--unused:", "contrast"),
            ("role=\"img\"", "", "has no words"),
            ("class=\"mark", "transform=\"translate(500)\" class=\"mark", "lies outside"),
            ("--c0:", "--c0:var(--line);--unused:", "is hardly seen"),
            (
                ".chart{display:block;width:100%",
                ".chart{display:block;width:10%",
                "chart Operations over time is",
            ),
            ("class=\"mark", "class=\"", "shows nothing"),
        ];
        for (from, to, expected) in breaks.into_iter().filter(|_| !is_dark) {
            assert!(all[0].1.contains(from), "{from}");
            let found = look(&[("broken".to_owned(), all[0].1.replace(from, to))])["wrong"].to_string();
            assert!(found.contains(expected), "{expected} not in {found}");
        }
    }
}
