//! The text of metrics in Prometheus's classic format, for collectors that do not read OpenMetrics.
//! In: text in the OpenMetrics format. Out: the same series, with the names that the older format gives to families.

/// The text in the classic format: a counter's family has the name of its samples there, and nothing marks the end.
pub(super) fn classic(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    // A counter's help comes before its type.
    let mut help = None;
    for line in text.lines() {
        if let Some(said) = line.strip_prefix("# HELP ") {
            help = Some(said);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|said| said.split_once(' ')) {
            let end = if kind == "counter" { "_total" } else { "" };
            let said = help.take().and_then(|said| said.strip_prefix(name)).unwrap_or_default();
            out.push_str(&format!("# HELP {name}{end}{said}\n# TYPE {name}{end} {kind}\n"));
        } else if !line.starts_with('#') {
            out.push_str(line);
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_the_names_of_their_samples_and_no_end() {
        let open = "# HELP a_messages Taken.\n# TYPE a_messages counter\na_messages_total{s=\"x\"} 3\n\
                    # HELP b Depth.\n# TYPE b gauge\nb 4\n# EOF\n";
        let told = "# HELP a_messages_total Taken.\n# TYPE a_messages_total counter\na_messages_total{s=\"x\"} 3\n\
                    # HELP b Depth.\n# TYPE b gauge\nb 4\n";
        assert_eq!(classic(open), told);
    }
}
