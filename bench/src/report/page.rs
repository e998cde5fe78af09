//! The page: what it consists of, and its template.

use askama::Template;

use super::chart::{Bars, Chart, DARK, LIGHT, STYLE};

/// A whole report.
#[derive(Debug, Template)]
#[template(path = "report.html")]
pub(super) struct Page {
    pub(super) title: String,
    /// What it is, above the title.
    pub(super) kind: String,
    /// The figure that it is about.
    pub(super) key: Option<Key>,
    /// What must not be overlooked.
    pub(super) warnings: Vec<String>,
    /// What the result says in plain words.
    pub(super) verdicts: Vec<String>,
    pub(super) command: Option<String>,
    /// Commit, machine and the like.
    pub(super) facts: Vec<(String, String)>,
    pub(super) sections: Vec<Section>,
    pub(super) style: Style,
}

/// The figure that a report is about.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) figure: String,
    pub(super) words: String,
}

/// What the style sheet takes from the charts.
#[derive(Debug, Default)]
pub(super) struct Style;

impl Style {
    fn light(&self) -> &'static str {
        LIGHT
    }

    fn dark(&self) -> &'static str {
        DARK
    }

    fn charts(&self) -> &'static str {
        STYLE
    }

    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}

/// A part with a heading.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    pub(super) heading: String,
    pub(super) paragraphs: Vec<String>,
    pub(super) figures: Vec<Figure>,
    pub(super) tables: Vec<Table>,
}

impl Section {
    pub(super) fn new(heading: impl Into<String>) -> Self {
        Self { heading: heading.into(), ..Self::default() }
    }

    fn has_columns(&self) -> bool {
        !self.figures.is_empty() || self.tables.iter().any(Table::is_narrow)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.paragraphs.is_empty() && self.figures.is_empty() && self.tables.is_empty()
    }
}

/// A chart with its title and legend.
#[derive(Clone, Debug)]
pub(super) struct Figure {
    pub(super) title: String,
    /// Escaped where it was drawn.
    svg: String,
    /// Classes of a mark, and what it stands for.
    pub(super) legend: Vec<(String, String)>,
    /// What has to be known to read it.
    pub(super) note: Option<String>,
}

/// Draws charts, and gives each an id of its own.
#[derive(Debug, Default)]
pub(super) struct Drawing {
    count: usize,
}

impl Drawing {
    fn id(&mut self) -> String {
        self.count += 1;
        format!("chart-{}", self.count)
    }

    /// `None` when the chart has nothing to show.
    pub(super) fn chart(&mut self, chart: &Chart) -> Option<Figure> {
        let svg = chart.svg(&self.id())?;
        let legend: Vec<_> =
            chart.legend().into_iter().map(|(class, name)| (class, name.to_owned())).collect();
        // One series is what the title says.
        let legend = if legend.len() > 1 { legend } else { Vec::new() };
        Some(Figure { title: chart.title.clone(), svg, legend, note: None })
    }

    /// `None` when there is no bar.
    pub(super) fn bars(&mut self, bars: &Bars) -> Option<Figure> {
        let svg = bars.svg(&self.id())?;
        Some(Figure { title: bars.title.clone(), svg, legend: Vec::new(), note: None })
    }
}

/// Rows of text; all columns but the first are numbers unless it says otherwise.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) caption: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
    /// Whether it stays folded until it is asked for.
    pub(super) is_folded: bool,
    /// Whether what is behind the first column is text.
    pub(super) is_text: bool,
}

impl Table {
    pub(super) fn new(caption: impl Into<String>, head: &[&str]) -> Self {
        Self {
            caption: caption.into(),
            head: head.iter().map(|&name| name.to_owned()).collect(),
            ..Self::default()
        }
    }

    /// Whether it has its place beside the charts.
    fn is_narrow(&self) -> bool {
        !self.is_folded && self.rows.iter().all(|row| row.len() <= 2)
    }
}
