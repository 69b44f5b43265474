//! The one table printer: columns as wide as their widest cell, two spaces between.

/// Rows of cells; the last column is not padded, so no line ends in spaces.
pub fn render(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_without_spaces() {
        let rows = vec![
            vec!["FEATURE".into(), "RESULT".into(), String::new()],
            vec!["pci".into(), "applied".into(), "2 devices".into()],
            vec!["short".into()],
        ];
        assert_eq!(render(&rows), "FEATURE  RESULT\npci      applied  2 devices\nshort\n");
        assert_eq!(render(&[]), "");
    }
}
