//! Results as a page: one HTML file that needs nothing else, for one result or for several side by side.
//!
//! [`render`] reads result folders, says what each kind is about or how several differ (whether by more than the
//! [`noise`]), draws it and fills the page. Results may come from elsewhere, so nothing in them is trusted: all text is
//! escaped, the page runs no script and loads nothing, and it says so to the browser. [`mod@readme`] makes the README's tables
//! and pictures of the same folders.

mod chart;
#[cfg(test)]
mod drift;
mod figures;
mod folder;
mod kinds;
pub mod noise;
mod page;
pub mod readme;
mod run;
mod several;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
};

use anyhow::Context;
use askama::Template;
use clap::Args;

use folder::{Folder, Kind};
use page::{Drawing, Page, Section, Style};
use several::Group;

/// Folders of one report, at most: more would not be told apart.
const FOLDERS_MAX: usize = 64;

/// A report of results that were kept.
#[derive(Clone, Debug, Args)]
pub struct ReportOptions {
    /// Folders of results, 1 to 64; several are put side by side, each against the first
    #[arg(required = true, value_name = "DIR", num_args = 1..)]
    pub folders: Vec<PathBuf>,
    /// Write the report to this file, which is replaced [default: report.html, in DIR when it is one, else here]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Renders the report and writes it; returns where. Nothing is left half-written: the file appears when it is complete.
///
/// # Errors
/// As of [`render`], and when the file cannot be written; a sentence that names it.
pub fn report(options: &ReportOptions) -> anyhow::Result<PathBuf> {
    let page = render(&options.folders)?;
    let file = match (&options.output, &options.folders[..]) {
        (Some(file), _) => file.clone(),
        (None, [folder]) => folder.join("report.html"),
        (None, _) => PathBuf::from("report.html"),
    };
    replace(&file, &page)?;
    Ok(file)
}

/// The report of these folders as HTML: of one all that it holds, of several what they have in common and how they
/// differ, and what only some of them have behind it.
///
/// # Errors
/// When a folder holds no result, or a damaged one; a sentence that names the file and what is wrong.
pub fn render(folders: &[PathBuf]) -> anyhow::Result<String> {
    let count = folders.len();
    anyhow::ensure!(
        (1..=FOLDERS_MAX).contains(&count),
        "a report takes 1 to {FOLDERS_MAX} result folders, not {count}"
    );
    let folders: Vec<Folder> = folders.iter().map(|path| Folder::read(path)).collect::<Result<_, _>>()?;
    let mut drawing = Drawing::default();
    let page = match &folders[..] {
        [folder] => one(folder, &mut drawing),
        folders => side_by_side(folders, &mut drawing),
    };
    page.render().context("cannot fill the page")
}

fn one(folder: &Folder, drawing: &mut Drawing) -> Page {
    Page {
        title: folder.name.clone(),
        kind: folder.kind.name().to_owned(),
        key: kinds::key(folder),
        warnings: kinds::warnings(folder),
        verdicts: kinds::verdicts(folder),
        command: folder.command.clone(),
        facts: folder.facts.clone(),
        sections: kinds::sections(folder, drawing),
        style: Style,
    }
}

fn side_by_side(folders: &[Folder], drawing: &mut Drawing) -> Page {
    let all: Vec<&Folder> = folders.iter().collect();
    let alike: Vec<&Folder> = folders.iter().filter(|folder| folder.ops_per_sec().is_some()).collect();
    let groups = several::groups(&alike);
    let mut sections = if alike.is_empty() { Vec::new() } else { several::sections(&groups, drawing) };
    let mut verdicts = several::verdicts(&groups);
    let others = folders.iter().filter(|folder| folder.ops_per_sec().is_none());
    let names = groups.iter().map(Group::described).chain(others.map(|folder| folder.name.clone()));
    let title = names.collect::<Vec<_>>().join(" · ");
    for folder in folders {
        let own = kinds::own_verdicts(folder);
        verdicts.extend(own.into_iter().map(|verdict| format!("{}: {verdict}", folder.name)));
        // What a run has is side by side; others have more behind them.
        if folder.ops_per_sec().is_some() && matches!(folder.kind, Kind::Run | Kind::Ceiling) {
            continue;
        }
        let named = |section: Section| Section {
            heading: format!("{}: {}", folder.name, section.heading),
            ..section
        };
        sections.extend(kinds::sections(folder, drawing).into_iter().map(named));
    }
    verdicts.extend(several::own_verdicts(&all));
    Page {
        title,
        kind: format!("{} results side by side", folders.len()),
        key: None,
        warnings: several::warnings(&all),
        verdicts,
        command: None,
        facts: Vec::new(),
        sections,
        style: Style,
    }
}

/// Writes a file so that it is either as before or complete.
fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let failed = |error: io::Error| anyhow::anyhow!("cannot write \"{}\": {error}", file.display());
    let Some(name) = file.file_name() else {
        anyhow::bail!("\"{}\" names no file to write to", file.display());
    };
    anyhow::ensure!(!file.is_dir(), "\"{}\" is a folder; name a file in it", file.display());
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.part", process::id()));
    let beside = file.with_file_name(beside);
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, file));
    written.map_err(|error| {
        // It may not even have been made; the first error is the one to tell.
        let _ = fs::remove_file(&beside);
        failed(error)
    })
}
