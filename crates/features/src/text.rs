//! Texts for users, within the limits of the places where they go.

/// Warnings of an `AdmissionReview` are cut by API servers above 256 characters
/// (`k8s.io/api/admission/v1`, v1.36); all of them together above 4096.
pub(crate) const MAX_WARNING: usize = 255;
/// So many warnings of the greatest length stay under the total.
pub(crate) const MAX_WARNINGS: usize = 16;
/// The longest `-error` annotation, in bytes.
pub(crate) const MAX_ERROR: usize = 1024;
/// The most candidates that an error lists.
const MAX_CANDIDATES: usize = 8;

/// One line of at most `max` bytes.
pub(crate) fn clip(text: &str, max: usize) -> String {
    let text = text.replace(|letter: char| letter.is_control(), " ");
    if text.len() <= max {
        return text;
    }
    let mut end = max - "…".len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

/// A list of candidates for an error: `a, b, c and 4 more`, or `none`.
pub(crate) fn candidates<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut names = names.into_iter();
    let mut text = String::new();
    for (count, name) in names.by_ref().take(MAX_CANDIDATES).enumerate() {
        if count > 0 {
            text.push_str(", ");
        }
        text.push_str(name.as_ref());
    }
    match names.count() {
        0 if text.is_empty() => "none".to_owned(),
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipped_texts_are_one_line_within_the_limit() {
        assert_eq!(clip("a\nb", 10), "a b");
        assert_eq!(clip("äöüäöü", 8), "äö…");
        assert!(clip(&"é".repeat(300), MAX_WARNING).len() <= MAX_WARNING);
    }

    #[test]
    fn candidates_are_few() {
        assert_eq!(candidates::<&str>([]), "none");
        assert_eq!(candidates(["a", "b"]), "a, b");
        assert_eq!(candidates((0..10).map(|n| n.to_string())), "0, 1, 2, 3, 4, 5, 6, 7 and 2 more");
    }
}
