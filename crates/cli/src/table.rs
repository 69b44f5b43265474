//! The one table printer: columns as wide as their widest cell, two spaces between; on a terminal no wider
//! than that.

use crate::terminal;

/// Between columns.
const GAP: usize = 2;

/// The least that is left of a column that is cut.
const LEAST: usize = 8;

/// Rows of cells; the last column is not padded, so no line ends in spaces.
pub fn render(rows: &[Vec<String>]) -> String {
    lines(rows, &widths(rows))
}

/// The same, no wider than the terminal; off a terminal nothing is cut, so scripts see all of it.
pub fn fit(rows: &[Vec<String>]) -> String {
    match terminal::columns() {
        Some(columns) => within(rows, columns),
        None => render(rows),
    }
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        })
        .collect()
}

/// Takes from the widest columns what is too much, as long as there is enough in them.
fn within(rows: &[Vec<String>], columns: usize) -> String {
    let mut widths = widths(rows);
    let between = widths.len().saturating_sub(1) * GAP;
    while widths.iter().sum::<usize>() + between > columns {
        match widths.iter_mut().max() {
            Some(widest) if *widest > LEAST => *widest -= 1,
            _ => break,
        }
    }
    lines(rows, &widths)
}

fn lines(rows: &[Vec<String>], widths: &[usize]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let length = cell.chars().count();
            if length > *width {
                line.extend(cell.chars().take(width.saturating_sub(1)));
                line.push('…');
                line.push_str("  ");
            } else {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - length + GAP));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        vec![
            vec!["FEATURE".into(), "RESULT".into(), String::new()],
            vec!["pci".into(), "applied".into(), "2 devices".into()],
            vec!["short".into()],
        ]
    }

    #[test]
    fn columns_line_up_and_lines_end_without_spaces() {
        assert_eq!(render(&rows()), "FEATURE  RESULT\npci      applied  2 devices\nshort\n");
        assert_eq!(render(&[]), "");
    }

    #[test]
    fn the_widest_columns_are_cut_to_the_terminal() {
        let wide = vec![vec!["name".into(), "x".repeat(30), "y".repeat(12)], vec!["web".into(), "z".into()]];
        for columns in [30, 40, 60] {
            let text = within(&wide, columns);
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}\n{text}");
        }
        assert_eq!(within(&wide, 60), render(&wide), "nothing has to be cut");
        assert!(within(&wide, 40).contains("xxx…  yyyyyyyyyyyy"), "the widest first");
        // what cannot be read any more is not cut further
        assert!(within(&wide, 3).starts_with("name  xxxxxxx…  yyyyyyy…"));
    }
}
