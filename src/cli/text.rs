//! Text for people: columns as wide as what stands in them, and sentences that stay within a terminal.

/// Narrow enough for every terminal.
const COLUMNS: usize = 80;

/// Rows under each other.
pub fn aligned<'a, const N: usize>(rows: impl IntoIterator<Item = &'a [String; N]>) -> Vec<String> {
    let rows: Vec<&[String; N]> = rows.into_iter().collect();
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let cells = |row: &[String; N]| row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>();
    rows.iter().map(|row| cells(row).join("  ").trim_end().to_owned()).collect()
}

/// Lines of words within the columns; a word that is longer has its line. What follows the first is indented more.
pub fn wrapped(lead: &str, text: &str) -> Vec<String> {
    let indent = " ".repeat(lead.chars().count() + 2);
    let (mut lines, mut line, mut is_fresh) = (Vec::new(), lead.to_owned(), true);
    for word in text.split_whitespace() {
        if !is_fresh && line.chars().count() + 1 + word.chars().count() > COLUMNS {
            lines.push(std::mem::replace(&mut line, indent.clone()));
            is_fresh = true;
        }
        line.push_str(if is_fresh { "" } else { " " });
        line.push_str(word);
        is_fresh = false;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_sentences_stay_within_the_columns_and_long_words_have_their_line() {
        let lines = wrapped("  ! ", &"word ".repeat(40));
        assert!(lines.len() == 3 && lines.iter().all(|line| line.len() <= COLUMNS), "{lines:#?}");
        assert!(lines[0].starts_with("  ! word") && lines[1].starts_with("      word"));
        assert_eq!(wrapped("  ", &format!("a {}", "x".repeat(100))).len(), 2);
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "B"], ["a→b", "c"]].map(|row| row.map(str::to_owned));
        assert_eq!(aligned(&rows), ["A    B", "a→b  c"]);
    }
}
