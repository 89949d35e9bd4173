//! Rows for people: columns as wide as what is in them.

/// Lines of a table with this head; columns are two spaces apart, and nothing follows the last.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A duration as a person says it: `45s`, `12m`, `3h 20m`, `5d 2h`.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m"),
        3_600..86_400 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// What is there, or a dash.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["b.example".to_owned(), "up".to_owned()], ["ü".to_owned(), String::new()]];
        assert_eq!(table(["PEER", "STATE"], rows), "PEER       STATE\nb.example  up\nü\n");
        assert_eq!(table(["PEER"], []), "PEER\n");
    }

    #[test]
    fn an_age_has_two_parts_at_most() {
        let said = [0, 59, 60, 3_599, 3_600, 12_000, 86_400, 180_000].map(age);
        assert_eq!(said, ["0s", "59s", "1m", "59m", "1h 0m", "3h 20m", "1d 0h", "2d 2h"]);
        assert_eq!((or_dash(Some(3)), or_dash(None::<u8>)), ("3".to_owned(), "-".to_owned()));
    }
}
