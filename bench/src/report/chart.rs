//! Charts as SVG: lines, dots and areas over two axes, and bars with their spread.
//!
//! A chart is drawn for a width of some 440 CSS pixels, so that its text is still read on a phone, and scales from there.
//! Colours, dashes and the size of text are left to the style sheet ([`STYLE`]), so that one drawing serves light, dark
//! and paper. Each mark has a `<title>`, which browsers show on pointing at it; title and description say the same to
//! those who do not see the chart. All text is escaped here.

use std::fmt::Write as _;

use super::figures::{extent, grouped, nines, significant};

/// Size of a chart, and the room for what surrounds the plot.
const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 42.0;

/// Between the y axis and its numbers.
const GAP: f64 = 7.0;

/// Width of a letter of the numbers at an axis where they are largest, on a phone.
const LETTER: f64 = 9.0;

/// Points of a line, at most; of more each drawn one is the mean of several. Twice as many would not be told apart on a
/// chart of this width.
const POINTS_MAX: usize = 400;

/// Points of a line that get a mark that can be pointed at, at most: more would touch each other.
const MARKS_MAX: usize = 64;

/// Numbers beyond this are no measurements, and their differences would overflow.
const NUMBER_MAX: f64 = 1e18;

/// Letters of a bar's label, at most: more would run into its figure.
const LABEL_MAX: usize = 34;

/// Colours that charts take, of which [`series_class`] names those of a series.
pub(super) const COLOURS: usize = 6;

/// What the marks look like. The colours are properties, which differ between light and dark.
pub(super) const STYLE: &str = "\
.chart text{font:11.5px system-ui,sans-serif;fill:var(--soft);font-variant-numeric:tabular-nums}
.chart .label{fill:var(--ink)}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .axis{stroke:var(--soft);stroke-width:1}
.chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.chart .dot{stroke:none}.chart .missed{fill:none!important;stroke-width:1.8}
.chart .spread{stroke:var(--ink);stroke-width:1.4;fill:none}.chart .around{stroke:var(--bg);stroke-width:4}
.chart .dashed{stroke-dasharray:6 4}
.line.c0,.missed.c0{stroke:var(--c0)}.line.c1,.missed.c1{stroke:var(--c1)}.line.c2,.missed.c2{stroke:var(--c2)}
.line.c3,.missed.c3{stroke:var(--c3)}.line.c4,.missed.c4{stroke:var(--c4)}.line.c5,.missed.c5{stroke:var(--c5)}
.fill.c0{fill:var(--c0)}.fill.c1{fill:var(--c1)}.fill.c2{fill:var(--c2)}
.fill.c3{fill:var(--c3)}.fill.c4{fill:var(--c4)}.fill.c5{fill:var(--c5)}
";

/// The colours on white. They differ in lightness too, so that they are told apart by those who see fewer colours
/// (after M. Okabe and K. Ito, \"Color Universal Design\", 2008, darkened to 3 : 1 against white).
pub(super) const LIGHT: &str = "--bg:#fff;--ink:#1c2128;--soft:#57606a;--line:#dde2e8;--panel:#f5f7f9;--link:#0b5cad;\
--c0:#0065b3;--c1:#cf5300;--c2:#008763;--c3:#a8437d;--c4:#8a6d00;--c5:#55606e;\
--alert-bg:#fff1e6;--alert-ink:#7a2e00;--alert-line:#cf5300;--calm-bg:#eef6ff;--calm-ink:#0a3a66";

/// The same on a dark ground.
pub(super) const DARK: &str = "--bg:#14181d;--ink:#e8ecf1;--soft:#a9b4c0;--line:#323a44;--panel:#1c2229;--link:#7cbcff;\
--c0:#5cb3f2;--c1:#ff9e4a;--c2:#35c79a;--c3:#e08abf;--c4:#e6cf4a;--c5:#a9b4c0;\
--alert-bg:#3a2212;--alert-ink:#ffd3b0;--alert-line:#ff9e4a;--calm-bg:#16283a;--calm-ink:#bfdfff";

/// Text for HTML and SVG, in elements and in quoted attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            // Not allowed in XML, and nothing to be seen in HTML.
            control if control.is_control() && !matches!(control, '\n' | '\t') => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The text, or its beginning and an ellipsis.
pub(super) fn shortened(text: &str, letters_max: usize) -> String {
    if text.chars().count() <= letters_max {
        return text.to_owned();
    }
    text.chars().take(letters_max - 1).chain(['…']).collect()
}

/// Classes of the series of this index: a colour, and dashes once the colours are used up.
pub(super) fn series_class(index: usize) -> String {
    let dashed = if index / COLOURS % 2 == 1 { " dashed" } else { "" };
    format!("c{}{dashed}", index % COLOURS)
}

/// How an axis maps its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// From the least to the largest.
    Linear,
    /// From zero, or below if there is something.
    FromZero,
    /// By orders of magnitude; what is not positive is left out.
    Log,
}

/// What the numbers at an axis are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ticks {
    /// Themselves.
    Plain,
    /// 1 / (1 − share): one more nine at each order of magnitude.
    Nines,
}

/// One of two axes.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    /// What, and in which unit.
    pub(super) label: String,
    pub(super) scale: Scale,
    pub(super) ticks: Ticks,
}

impl Axis {
    pub(super) fn new(label: impl Into<String>, scale: Scale) -> Self {
        Self { label: label.into(), scale, ticks: Ticks::Plain }
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A line.
    Line,
    /// A dashed line.
    Dashed,
    /// Dots.
    Dots,
    /// Rings.
    Rings,
    /// An area on top of those before.
    Stacked,
}

/// What is drawn in one colour.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) mark: Mark,
    /// Which of the colours.
    pub(super) colour: usize,
    pub(super) points: Vec<(f64, f64)>,
}

/// Series over two axes.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) series: Vec<Series>,
    /// The end of the y axis, where it is known without the points.
    pub(super) y_max: Option<f64>,
}

/// An axis with its ends, in numbers and on the drawing.
struct Fitted {
    is_log: bool,
    from: f64,
    to: f64,
    at_from: f64,
    at_to: f64,
    ticks: Vec<f64>,
}

impl Fitted {
    /// `None` when none of the values can be shown.
    fn new(axis: &Axis, values: impl Iterator<Item = f64>, end: Option<f64>, at: (f64, f64)) -> Option<Self> {
        let scale = axis.scale;
        let is_log = scale == Scale::Log;
        let (mut from, mut to) = extent(values)?;
        if is_log {
            let ((from, to), ticks) = log_ticks(from, to, axis.ticks == Ticks::Nines);
            return Some(Self { is_log, from, to, at_from: at.0, at_to: at.1, ticks });
        }
        if scale == Scale::FromZero {
            (from, to) = (from.min(0.0), to.max(0.0));
        }
        to = end.unwrap_or(to).max(to);
        if to - from <= from.abs().max(to.abs()) * 1e-9 {
            // All alike: a range around it, or the first of zeros.
            let room = if from == 0.0 { 1.0 } else { from.abs() * 0.1 };
            to += room;
            from = if scale == Scale::FromZero { from } else { from - room };
        }
        let step = nice_step((to - from) / 5.5);
        let (first, last) = match scale {
            Scale::FromZero => ((from / step).floor(), (to / step - 1e-9).ceil()),
            _ => ((from / step - 1e-9).ceil(), (to / step + 1e-9).floor()),
        };
        let ticks: Vec<f64> =
            (0..=(last - first) as usize).map(|tick| (first + tick as f64) * step).collect();
        if scale == Scale::FromZero {
            (from, to) = (first * step, last * step);
        }
        Some(Self { is_log, from, to, at_from: at.0, at_to: at.1, ticks })
    }

    fn at(&self, value: f64) -> f64 {
        let scaled = |value: f64| if self.is_log { value.log10() } else { value };
        let share = (scaled(value) - scaled(self.from)) / (scaled(self.to) - scaled(self.from));
        self.at_from + share.clamp(0.0, 1.0) * (self.at_to - self.at_from)
    }

    fn labels(&self, ticks: Ticks) -> Vec<String> {
        let step = self.ticks.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min);
        let decimals =
            if step.is_finite() { (-step.log10() - 0.01).ceil().clamp(0.0, 9.0) as usize } else { 0 };
        let label = |&value: &f64| match ticks {
            Ticks::Nines => {
                let nines = value.log10().round().max(0.0) as usize;
                format!("{:.*}", nines.saturating_sub(2), 100.0 - 100.0 / value)
            }
            Ticks::Plain if self.is_log => significant(value),
            Ticks::Plain => grouped(value, decimals),
        };
        self.ticks.iter().map(label).collect()
    }
}

/// The next of 1, 2, 5 times a power of ten.
fn nice_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    power * steps.into_iter().find(|step| step * power >= least * 0.999).unwrap_or(10.0)
}

/// Ends of 1, 2 or 5 times a power of ten that enclose the two numbers, and ticks from one to the other: as many of the
/// steps as have room, and of powers of ten alone every n-th when there are too many.
fn log_ticks(least: f64, most: f64, are_nines: bool) -> ((f64, f64), Vec<f64>) {
    const TICKS_MAX: usize = 7;
    let powers = least.log10().floor() as i32 - 1..=most.log10().ceil() as i32 + 1;
    let all = |steps: &'static [f64]| -> Vec<f64> {
        let of_power = |power| steps.iter().map(move |step| step * 10_f64.powi(power));
        powers.clone().flat_map(of_power).collect()
    };
    let ends = all(&[1.0, 2.0, 5.0]);
    let from = ends.iter().rposition(|&end| end <= least * 1.000_001).unwrap_or(0);
    let to = ends.iter().position(|&end| end >= most * 0.999_999).unwrap_or(ends.len() - 1).max(from + 1);
    let (from, to) = (ends[from], ends[to.min(ends.len() - 1)]);
    let sets: &[&[f64]] = if are_nines { &[&[1.0]] } else { &[&[1.0, 2.0, 5.0], &[1.0, 5.0], &[1.0]] };
    let mut ticks = Vec::new();
    for steps in sets {
        ticks = all(steps);
        ticks.retain(|&tick| tick >= from * 0.999_999 && tick <= to * 1.000_001);
        if ticks.len() <= TICKS_MAX {
            break;
        }
    }
    let step = ticks.len().div_ceil(TICKS_MAX).max(1);
    ((from, to), ticks.into_iter().step_by(step).collect())
}

impl Chart {
    /// What is in the legend: classes of the mark, and the name.
    pub(super) fn legend(&self) -> Vec<(String, &str)> {
        self.series.iter().map(|series| (series.legend_class(), &*series.name)).collect()
    }

    /// The drawing, whose ids begin with `id`. `None` when there is nothing to be drawn.
    pub(super) fn svg(&self, id: &str) -> Option<String> {
        let is_shown = |&(x, y): &(f64, f64)| {
            let fits = |value: f64, axis: &Axis| {
                value.abs() <= NUMBER_MAX && (axis.scale != Scale::Log || value > 1.0 / NUMBER_MAX)
            };
            fits(x, &self.x) && fits(y, &self.y)
        };
        let mut series: Vec<Series> = self.series.clone();
        for one in &mut series {
            one.points.retain(is_shown);
            if !matches!(one.mark, Mark::Dots | Mark::Rings) {
                one.points = merged(&one.points);
            }
        }
        let floors = stack(&mut series);
        let points = || series.iter().flat_map(|series| &series.points);
        let y = Fitted::new(&self.y, points().map(|point| point.1), self.y_max, (HEIGHT - BOTTOM, TOP))?;
        let letters = y.labels(self.y.ticks).iter().map(|label| label.chars().count()).max().unwrap_or(0);
        let left = LEFT.max(GAP + 1.0 + letters as f64 * LETTER);
        let x = Fitted::new(&self.x, points().map(|point| point.0), None, (left, WIDTH - RIGHT))?;
        let mut svg = opening(id, HEIGHT, &self.title, &self.description());
        self.draw_axes(&mut svg, &x, &y);
        // The last of a stack is the tallest, and is drawn first.
        for (one, floor) in series.iter().zip(&floors).rev() {
            self.draw(&mut svg, one, floor, &x, &y);
        }
        svg += "</svg>";
        Some(svg)
    }

    fn draw_axes(&self, svg: &mut String, x: &Fitted, y: &Fitted) {
        let (left, right, top, bottom) = (x.at_from, x.at_to, TOP, HEIGHT - BOTTOM);
        for (tick, label) in y.ticks.iter().zip(y.labels(self.y.ticks)) {
            let at = y.at(*tick);
            push(svg, format_args!("<path class=\"grid\" d=\"M{left} {at:.1}H{right}\"/>"));
            push(
                svg,
                format_args!(
                    "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                    left - GAP,
                    at + 4.0
                ),
            );
        }
        for (tick, label) in x.ticks.iter().zip(x.labels(self.x.ticks)) {
            let at = x.at(*tick);
            let (place, anchor) = place_below(at, &label);
            push(svg, format_args!("<path class=\"axis\" d=\"M{at:.1} {bottom}v4\"/>"));
            push(
                svg,
                format_args!(
                    "<text x=\"{place:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{label}</text>",
                    bottom + 17.0
                ),
            );
        }
        push(svg, format_args!("<path class=\"axis\" d=\"M{left} {bottom}H{right}\"/>"));
        let (x_label, y_label) = (escaped(&self.x.label), escaped(&self.y.label));
        push(svg, format_args!("<text class=\"label\" x=\"4\" y=\"{}\">{y_label}</text>", top - 13.0));
        push(
            svg,
            format_args!(
                "<text class=\"label\" x=\"{right}\" y=\"{}\" text-anchor=\"end\">{x_label}</text>",
                HEIGHT - 7.0
            ),
        );
    }

    fn draw(&self, svg: &mut String, series: &Series, floor: &[f64], x: &Fitted, y: &Fitted) {
        let class = series_class(series.colour);
        let place = |&(at_x, at_y): &(f64, f64)| (x.at(at_x), y.at(at_y));
        let path = |points: &mut dyn Iterator<Item = (f64, f64)>| {
            let mut path = String::new();
            for (index, (x, y)) in points.enumerate() {
                push(&mut path, format_args!("{}{x:.1} {y:.1}", if index == 0 { 'M' } else { 'L' }));
            }
            path
        };
        match series.mark {
            Mark::Line | Mark::Dashed if series.points.len() > 1 => {
                let dashed = if series.mark == Mark::Dashed { " dashed" } else { "" };
                let line = path(&mut series.points.iter().map(place));
                push(svg, format_args!("<path class=\"mark line {class}{dashed}\" d=\"{line}\"/>"));
            }
            Mark::Stacked => {
                let lower =
                    series.points.iter().zip(floor).rev().map(|(point, &floor)| (x.at(point.0), y.at(floor)));
                let area = path(&mut series.points.iter().map(place).chain(lower));
                push(
                    svg,
                    format_args!(
                        "<path class=\"mark fill {class}\" d=\"{area}Z\"><title>{}</title></path>",
                        escaped(&series.name)
                    ),
                );
            }
            Mark::Line | Mark::Dashed | Mark::Dots | Mark::Rings => {}
        }
        let has_marks = match series.mark {
            Mark::Stacked => false,
            Mark::Dots | Mark::Rings => true,
            Mark::Line | Mark::Dashed => series.points.len() <= MARKS_MAX,
        };
        for point in series.points.iter().filter(|_| has_marks) {
            let (at_x, at_y) = place(point);
            let (kind, radius) = match series.mark {
                Mark::Rings => ("missed", 4.0),
                Mark::Dots => ("dot fill", 4.0),
                _ => ("dot fill", 2.6),
            };
            let title = escaped(&format!(
                "{}: {} at {} ({}; {})",
                series.name,
                shown_on(&self.y, point.1),
                shown_on(&self.x, point.0),
                self.y.label,
                self.x.label
            ));
            push(
                svg,
                format_args!(
                    "<circle class=\"mark {kind} {class}\" cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"{radius}\"><title>{title}</title></circle>"
                ),
            );
        }
    }

    /// From where to where each series goes.
    fn description(&self) -> String {
        let mut text = format!("{} over {}.", self.y.label, self.x.label);
        for series in &self.series {
            if let Some((least, most)) = extent(series.points.iter().map(|point| point.1)) {
                let (least, most) = (shown_on(&self.y, least), shown_on(&self.y, most));
                push(&mut text, format_args!(" {}: {least} to {most}.", series.name));
            }
        }
        text
    }
}

/// Where a label goes that belongs below `at`, and which part of it is there: it must not reach beyond the drawing.
fn place_below(at: f64, label: &str) -> (f64, &'static str) {
    let half = label.chars().count() as f64 * LETTER / 2.0;
    if at + half > WIDTH { (WIDTH - 1.0, "end") } else { (at, "middle") }
}

fn shown_on(axis: &Axis, value: f64) -> String {
    match axis.ticks {
        Ticks::Plain => significant(value),
        Ticks::Nines => format!("{} %", nines(1.0 - 1.0 / value)),
    }
}

impl Series {
    fn legend_class(&self) -> String {
        let kind = match self.mark {
            Mark::Line => "line",
            Mark::Dashed => "line dashed",
            Mark::Dots => "dot fill",
            Mark::Rings => "missed",
            Mark::Stacked => "fill",
        };
        format!("{kind} {}", series_class(self.colour))
    }
}

/// Means of neighbours, so that there are at most [`POINTS_MAX`].
fn merged(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS_MAX).max(1);
    let mean = |part: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
        part.iter().map(of).sum::<f64>() / part.len() as f64
    };
    points.chunks(size).map(|part| (mean(part, |point| point.0), mean(part, |point| point.1))).collect()
}

/// Puts stacked series on top of each other, and returns what is below each point.
fn stack(series: &mut [Series]) -> Vec<Vec<f64>> {
    let mut height: Vec<f64> = Vec::new();
    let mut floors = Vec::with_capacity(series.len());
    for one in series {
        if one.mark == Mark::Stacked {
            height.resize(one.points.len().max(height.len()), 0.0);
            floors.push(height.clone());
            for (point, height) in one.points.iter_mut().zip(&mut height) {
                *height += point.1.max(0.0);
                point.1 = *height;
            }
        } else {
            floors.push(Vec::new());
        }
    }
    floors
}

/// One bar.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: f64,
    /// Where the figures lie of which `value` is the median.
    pub(super) spread: Option<(f64, f64)>,
    /// What is written at it.
    pub(super) shown: String,
    /// Which of the colours.
    pub(super) colour: usize,
}

/// Bars, one below the other.
#[derive(Clone, Debug)]
pub(super) struct Bars {
    pub(super) title: String,
    /// What, and in which unit.
    pub(super) label: String,
    pub(super) bars: Vec<Bar>,
}

impl Bars {
    /// The drawing, whose ids begin with `id`. `None` when there is nothing to be drawn.
    pub(super) fn svg(&self, id: &str) -> Option<String> {
        const STEP: f64 = 38.0;
        const ABOVE: f64 = 8.0;
        let bars = || self.bars.iter().filter(|bar| (0.0..=NUMBER_MAX).contains(&bar.value));
        let ends = |bar: &Bar| [bar.value, bar.spread.map_or(0.0, |(_, most)| most.min(NUMBER_MAX))];
        let (left, right) = (4.0, WIDTH - RIGHT);
        bars().next()?;
        let x = Fitted::new(&Axis::new("", Scale::FromZero), bars().flat_map(ends), None, (left, right))?;
        let height = ABOVE + STEP * bars().count() as f64 + BOTTOM;
        let mut description = format!("{}.", self.label);
        for bar in bars() {
            push(&mut description, format_args!(" {}: {}.", bar.label, bar.shown));
        }
        let mut svg = opening(id, height, &self.title, &description);
        let bottom = height - BOTTOM + 4.0;
        for (index, (tick, label)) in x.ticks.iter().zip(x.labels(Ticks::Plain)).enumerate() {
            let at = x.at(*tick);
            let (place, anchor) = if index == 0 { (at, "start") } else { place_below(at, &label) };
            if index > 0 {
                push(&mut svg, format_args!("<path class=\"grid\" d=\"M{at:.1} {ABOVE}V{bottom}\"/>"));
            }
            push(
                &mut svg,
                format_args!(
                    "<text x=\"{place:.1}\" y=\"{}\" text-anchor=\"{anchor}\">{label}</text>",
                    bottom + 14.0
                ),
            );
        }
        let label = escaped(&self.label);
        push(
            &mut svg,
            format_args!(
                "<text class=\"label\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                height - 5.0
            ),
        );
        for (index, bar) in bars().enumerate() {
            let top = ABOVE + STEP * index as f64;
            let (label, shown) = (escaped(&shortened(&bar.label, LABEL_MAX)), escaped(&bar.shown));
            let title = escaped(&format!("{}: {}", bar.label, bar.shown));
            let (width, middle) = (x.at(bar.value) - left, top + 24.0);
            push(
                &mut svg,
                format_args!("<text class=\"label\" x=\"{left}\" y=\"{:.1}\">{label}</text>", top + 13.0),
            );
            push(
                &mut svg,
                format_args!(
                    "<text class=\"label\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{shown}</text>",
                    top + 13.0
                ),
            );
            push(
                &mut svg,
                format_args!(
                    "<rect class=\"mark fill {}\" x=\"{left}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" rx=\"2\"><title>{title}</title></rect>",
                    series_class(bar.colour),
                    top + 18.0,
                    width.max(1.0)
                ),
            );
            if let Some((least, most)) = bar.spread.filter(|(least, most)| most > least) {
                let (from, to) = (x.at(least), x.at(most));
                let ends = middle - 4.0;
                let path = format!("M{from:.1} {middle}H{to:.1}M{from:.1} {ends}v8M{to:.1} {ends}v8");
                // Twice, so that it stands out from a bar of any colour.
                push(&mut svg, format_args!("<path class=\"spread around\" d=\"{path}\"/>"));
                push(&mut svg, format_args!("<path class=\"mark spread\" d=\"{path}\"/>"));
            }
        }
        svg += "</svg>";
        Some(svg)
    }
}

/// A drawing for a file of its own, which brings its style, light or dark as the reader prefers.
pub(super) fn standalone(svg: &str) -> String {
    let style = format!(
        "<style>svg{{{LIGHT}}}\n@media (prefers-color-scheme:dark){{svg{{{DARK}}}}}\n{STYLE}</style><rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"var(--bg)\"/>\n"
    );
    // The style belongs behind the description, before all that is drawn.
    let opened = svg.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"640\" ", 1);
    opened.replacen("</desc>", &format!("</desc>\n{style}"), 1).replace("><", ">\n<") + "\n"
}

fn opening(id: &str, height: f64, title: &str, description: &str) -> String {
    let (title, description) = (escaped(title), escaped(description));
    format!(
        "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
         <title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{description}</desc>"
    )
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(x: Scale, y: Scale, points: &[(f64, f64)]) -> Chart {
        let line = Series { name: "a".into(), mark: Mark::Line, colour: 0, points: points.to_vec() };
        Chart {
            title: "t".into(),
            x: Axis::new("s", x),
            y: Axis::new("op/s", y),
            series: vec![line],
            y_max: None,
        }
    }

    /// All numbers of the drawing's coordinates.
    fn coordinates(svg: &str) -> Vec<f64> {
        let attributes = [" d=\"", "cx=\"", "cy=\"", " x=\"", " y=\"", "width=\""];
        let values = attributes
            .iter()
            .flat_map(|name| svg.split(name).skip(1).map(|rest| rest.split('"').next().unwrap()));
        values
            .flat_map(|value| value.split(|letter: char| letter.is_ascii_alphabetic() || letter == ' '))
            .filter(|number| !number.is_empty())
            .map(|number| number.parse().unwrap())
            .collect()
    }

    /// Goal: whatever the numbers are, all that is drawn lies on the drawing. Method: ordinary, equal, huge, tiny,
    /// negative and single ones, on all scales.
    #[test]
    fn marks_lie_inside() {
        let cases: [&[(f64, f64)]; 7] = [
            &[(0.0, 1.0), (1.0, 5.0), (2.0, 3.0)],
            &[(0.0, 7.0), (1.0, 7.0)],
            &[(0.0, 0.0), (1.0, 0.0)],
            &[(1e-18, 1e18), (1e18, 1e-18)],
            &[(3.0, 4.0)],
            &[(-5.0, -1e17), (5.0, -1.0)],
            &[(1.0, f64::NAN), (2.0, f64::INFINITY), (f64::NEG_INFINITY, 1.0), (1e300, -1e300), (4.0, 2.0)],
        ];
        for points in cases {
            for x in [Scale::Linear, Scale::FromZero, Scale::Log] {
                for y in [Scale::Linear, Scale::FromZero, Scale::Log] {
                    let Some(svg) = chart(x, y, points).svg("c") else {
                        assert!(x == Scale::Log || y == Scale::Log, "{points:?}");
                        continue;
                    };
                    for number in coordinates(&svg) {
                        assert!((0.0..=WIDTH).contains(&number), "{points:?} {x:?} {y:?}: {number} in {svg}");
                    }
                    let ticks = svg.matches("<text").count();
                    assert!((4..=26).contains(&ticks), "{points:?} {x:?} {y:?}: {ticks} in {svg}");
                }
            }
        }
        assert_eq!(chart(Scale::Linear, Scale::Log, &[(1.0, 0.0)]).svg("c"), None);
        assert_eq!(chart(Scale::Linear, Scale::Linear, &[]).svg("c"), None);
    }

    /// Goal: long numbers at an axis lie on the drawing. Method: shares with seven nines, over seconds in µs.
    #[test]
    fn long_labels_have_room() {
        let mut chart = chart(Scale::Log, Scale::Log, &[(1e5, 10.0), (1e6, 5e7)]);
        chart.y.ticks = Ticks::Nines;
        let svg = chart.svg("c").unwrap();
        for text in svg.split("<text ").skip(1) {
            let part =
                |name: &str| text.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
            let label = text.split(['>', '<']).nth(1).unwrap();
            let (at, width) =
                (part("x").unwrap().parse::<f64>().unwrap(), label.chars().count() as f64 * LETTER);
            let from = match part("text-anchor") {
                Some("end") => at - width,
                Some("middle") => at - width / 2.0,
                _ => at,
            };
            assert!(from >= 0.0 && from + width <= WIDTH, "{label}: {from}, {width}");
        }
        assert!(svg.contains(">99.99999<") && svg.contains(">1,000,000<"), "{svg}");
    }

    #[test]
    fn ticks_are_round_numbers() {
        let labels = |scale, values: &[f64]| {
            let axis =
                Fitted::new(&Axis::new("", scale), values.iter().copied(), None, (0.0, 100.0)).unwrap();
            axis.labels(Ticks::Plain).join(" ")
        };
        assert_eq!(labels(Scale::FromZero, &[31.2]), "0 10 20 30 40");
        assert_eq!(labels(Scale::FromZero, &[1800.0]), "0 500 1,000 1,500 2,000");
        assert_eq!(labels(Scale::Linear, &[0.0, 1.0]), "0.0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(labels(Scale::Log, &[140.0, 4600.0]), "100 200 500 1,000 2,000 5,000");
        assert_eq!(labels(Scale::Log, &[120.0, 17_000.0]), "100 500 1,000 5,000 10,000");
        assert_eq!(labels(Scale::Log, &[1.0, 1e6]), "1 10 100 1,000 10,000 100,000 1,000,000");
    }

    /// Goal: a share axis has one more nine at each tick. Method: its labels.
    #[test]
    fn nines_are_shares() {
        let nines = Axis { ticks: Ticks::Nines, ..Axis::new("", Scale::Log) };
        let axis = Fitted::new(&nines, [1.0, 10_000.0].into_iter(), None, (0.0, 1.0)).unwrap();
        assert_eq!(axis.labels(Ticks::Nines).join(" "), "0 90 99 99.9 99.99");
        let shown = [10.0, 2_000.0, 20_000.0, 5e6].map(|value| shown_on(&nines, value));
        assert_eq!(shown, ["90 %", "99.95 %", "99.995 %", "99.99998 %"]);
    }

    /// Goal: text cannot leave its place. Method: hostile names and labels everywhere.
    #[test]
    fn text_is_escaped() {
        let hostile = "<script>\"'&\u{0}";
        let mut chart = chart(Scale::Linear, Scale::Linear, &[(0.0, 1.0), (1.0, 2.0)]);
        (chart.title, chart.x.label, chart.y.label) = (hostile.into(), hostile.into(), hostile.into());
        chart.series[0].name = hostile.into();
        let bar = Bar {
            label: hostile.into(),
            value: 1.0,
            spread: Some((0.5, 2.0)),
            shown: hostile.into(),
            colour: 9,
        };
        let bars = Bars { title: hostile.into(), label: hostile.into(), bars: vec![bar] };
        for svg in [chart.svg("c").unwrap(), bars.svg("c").unwrap()] {
            assert!(!svg.contains("<script") && !svg.contains('\u{0}'), "{svg}");
            assert!(svg.contains("&lt;script&gt;&quot;&#39;&amp;\u{fffd}"), "{svg}");
        }
    }

    /// Goal: areas stand on each other, and the second's floor is the first's top. Method: two of equal height.
    #[test]
    fn areas_are_stacked() {
        let one = |name: &str| Series {
            name: name.into(),
            mark: Mark::Stacked,
            colour: 0,
            points: vec![(0.0, 1.0), (1.0, 2.0)],
        };
        let mut series = [one("a"), one("b")];
        assert_eq!(stack(&mut series), [vec![0.0, 0.0], vec![1.0, 2.0]]);
        assert_eq!(series[1].points, [(0.0, 2.0), (1.0, 4.0)]);
    }

    #[test]
    fn long_series_are_merged() {
        let points: Vec<_> = (0..1000).map(|second| (f64::from(second), 3.0)).collect();
        let merged = merged(&points);
        assert_eq!(merged.len(), 334);
        assert!(merged.iter().all(|point| point.1 == 3.0));
        assert_eq!(shortened("abcdef", 4), "abc…");
        assert_eq!(series_class(7), "c1 dashed");
    }
}
