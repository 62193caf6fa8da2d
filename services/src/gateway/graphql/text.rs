//! Scans a document before it is parsed: the parser follows nesting on its stack, however deep that is.
//! In: a document. Out: its strings and comments, and how deep its brackets are nested.

/// Returns whether brackets of any kind are nested deeper than this. Strings and comments do not count.
pub(super) fn is_deeper(document: &str, max: usize) -> bool {
    let (mut at, mut depth) = (0, 0_usize);
    while let Some(byte) = document.as_bytes().get(at) {
        at += match byte {
            b'#' | b'"' => no_code(&document[at..]),
            b'{' | b'[' | b'(' => {
                depth += 1;
                1
            }
            b'}' | b']' | b')' => {
                depth = depth.saturating_sub(1);
                1
            }
            _ => 1,
        };
        if depth > max {
            return true;
        }
    }
    false
}

/// The length of the comment or the string that begins here, with its quotes.
pub(super) fn no_code(rest: &str) -> usize {
    if rest.starts_with('#') {
        return rest.find(['\n', '\r']).unwrap_or(rest.len());
    }
    if let Some(block) = rest.strip_prefix("\"\"\"") {
        // One that does not end is not a block string: the parser goes back and takes an empty string.
        return block_end(block).map_or(2, |end| end + 3);
    }
    let mut escaped = false;
    let end = rest.bytes().skip(1).position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.map_or(rest.len(), |at| at + 2)
}

/// The end of a block string without its first quotes, behind its last ones.
fn block_end(block: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(found) = block[from..].find("\"\"\"") {
        let at = from + found;
        if !block[..at].ends_with('\\') {
            return Some(at + 3);
        }
        from = at + 3;
    }
    None
}

#[cfg(test)]
mod tests {
    use async_graphql::Value;
    use async_graphql::parser::parse_query;
    use async_graphql::parser::types::Selection;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn brackets_of_every_kind_are_nested_and_what_is_no_code_is_not_looked_at() {
        let nested = |open: &str, close: &str, depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for (open, close) in [("{", "}"), ("[", "]"), ("(", ")"), ("{a(b:[", "]) }")] {
            let each = open.chars().filter(|c| "{[(".contains(*c)).count();
            assert!(!is_deeper(&nested(open, close, 6), 6 * each), "{open}");
            assert!(is_deeper(&nested(open, close, 7), 6 * each), "{open}");
        }
        let many = "[{(".repeat(100_000);
        assert!(is_deeper(&many, 32));
        for passive in [
            format!("{{ a(b: \"{many}\") }}"),
            format!("{{ a(b: \"\\\"{many}\") }}"),
            format!("{{ a(b: \"\"\"\"{many} \\\"\"\" \n{many}\"\"\") }}"),
            format!("{{ a # {many}\n }}"),
        ] {
            assert!(!is_deeper(&passive, 2), "{passive:.40}");
        }
        for active in [
            // Neither is a block string, though its quotes look like one's.
            format!("{{ a(b: [\"\"\"\", {many}"),
            format!("{{ a(b: [\"\", {many}"),
            format!("{{ a # \r{many}"),
        ] {
            assert!(is_deeper(&active, 32), "{active:.40}");
        }
    }

    proptest! {
        /// A document that the parser reads to its end is as deep as the scan says.
        #[test]
        fn the_scan_reads_strings_and_comments_as_the_parser_does(
            parts in prop::collection::vec(
                prop::sample::select(vec!["\"", "\"\"\"", "\\", "\\\"\"\"", "#", "\n", "[", "]", "a", " ", "\"x\"", "é"]),
                0..24,
            ),
        ) {
            let document = format!("{{ a(b: [{}]) }}", parts.concat());
            if let Ok(parsed) = parse_query(&document) {
                let (_, operation) = parsed.operations.iter().next().unwrap();
                let Selection::Field(field) = &operation.node.selection_set.node.items[0].node else { unreachable!() };
                let depth = lists(&field.node.arguments[0].1.node.clone().into_const().unwrap());
                prop_assert!(is_deeper(&document, depth + 1) && !is_deeper(&document, depth + 2), "{document:?}");
            }
        }
    }

    fn lists(value: &Value) -> usize {
        match value {
            Value::List(values) => 1 + values.iter().map(lists).max().unwrap_or_default(),
            _ => 0,
        }
    }
}
