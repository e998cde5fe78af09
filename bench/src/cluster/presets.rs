//! Shapes that have a name: how many servers and clients, and series of several runs.

/// What a preset decides of one run. `None` is left to the file and the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Point {
    /// What it is called in a series.
    pub(crate) label: String,
    pub(crate) servers: Option<usize>,
    pub(crate) clients: Option<usize>,
    pub(crate) threads: Option<u16>,
    pub(crate) order: Option<&'static str>,
}

impl Point {
    fn shape(servers: usize, clients: usize) -> Self {
        Self {
            label: format!("s{servers}c{clients}"),
            servers: Some(servers),
            clients: Some(clients),
            ..Self::default()
        }
    }
}

/// The runs of a preset, in their order.
///
/// # Errors
/// What presets there are.
pub(crate) fn points(name: &str) -> Result<Vec<Point>, String> {
    let threads = |threads: u16| Point {
        label: format!("threads {threads}"),
        threads: Some(threads),
        ..Point::default()
    };
    let order = |order| Point { label: format!("order {order}"), order: Some(order), ..Point::default() };
    Ok(match name {
        // The clients are those of the largest run, so that only the servers differ.
        "linearity" => [1, 2, 4].map(|servers| Point::shape(servers, 4)).into(),
        "scale-clients" => [1, 2, 4].map(|clients| Point::shape(4, clients)).into(),
        "sessions" => [1, 2, 4, 8, 16].map(threads).into(),
        "order" => ["none", "strict"].map(order).into(),
        _ => vec![shape(name).ok_or_else(|| {
            format!(
                "`{name}` is none: give sNcM for 1 to 64 servers and clients, such as s4c4, or linearity, scale-clients, \
                 sessions or order"
            )
        })?],
    })
}

fn shape(name: &str) -> Option<Point> {
    let (servers, clients) = name.strip_prefix('s')?.split_once('c')?;
    let count = |text: &str| {
        let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|count| is_plain && (1..=64).contains(count))
    };
    Some(Point::shape(count(servers)?, count(clients)?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Goal: every shape that was ever run has a name, and what is none is refused with what there is. Method: some of
    /// each.
    #[test]
    fn shapes_are_read() {
        for (name, servers, clients) in
            [("s1c1", 1, 1), ("s1c7", 1, 7), ("s2c6", 2, 6), ("s4c4", 4, 4), ("s64c64", 64, 64)]
        {
            assert_eq!(points(name), Ok(vec![Point::shape(servers, clients)]), "{name}");
        }
        for name in ["", "s", "s0c1", "s1c0", "s1", "c1s1", "s+1c1", "s65c1", "s1c1x", "S1C1", "linear"] {
            let error = points(name).unwrap_err();
            assert!(error.contains(&format!("`{name}`")) && error.contains("s4c4"), "{error}");
        }
    }

    /// Goal: in a series one thing grows. Method: which fields differ between its points.
    #[test]
    fn series_vary_one_thing() {
        let varied = |name: &str| {
            let points = points(name).unwrap();
            let fields: [fn(&Point) -> String; 4] = [
                |point| format!("{:?}", point.servers),
                |point| format!("{:?}", point.clients),
                |point| format!("{:?}", point.threads),
                |point| format!("{:?}", point.order),
            ];
            fields.map(|field| {
                let values = points.iter().map(field).collect::<BTreeSet<_>>().len();
                assert!([1, points.len()].contains(&values), "{name}");
                values > 1
            })
        };
        assert_eq!(varied("linearity"), [true, false, false, false]);
        assert_eq!(varied("scale-clients"), [false, true, false, false]);
        assert_eq!(varied("sessions"), [false, false, true, false]);
        assert_eq!(varied("order"), [false, false, false, true]);
    }
}
