//! Recognises an input that is neither CSV nor NDJSON in UTF-8 by its first bytes, before it is read.
//! In: the first bytes and the input's name. Out: the format's name and what to do, or nothing.

use std::io::{self, BufRead, Read};

use super::record::COLUMNS;

/// The most bytes that are looked at.
const SEEN_MAX: usize = 4_096;

/// The first bytes of formats that are not text.
const MAGIC: [(&[u8], &str, &str); 6] = [
    (b"\x1f\x8b", "compressed with gzip", "zcat"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstdcat"),
    (b"BZh", "compressed with bzip2", "bzcat"),
    (b"\xfd7zXZ\0", "compressed with xz", "xzcat"),
    (b"PK\x03\x04", "a ZIP archive, as a workbook is: export it as CSV, or take the file out of it", "unzip -p"),
    (b"PAR1", "a Parquet file: export it as CSV or NDJSON", ""),
];

/// The separators of formats that are nearly CSV.
const SEPARATORS: [(char, &str, &str); 3] = [(';', "semicolons", "';'"), ('\t', "tabs", "tab"), ('|', "bars", "'|'")];

/// Reads the beginning of an input; returns the input with those bytes still to be read, and the objection to it, if
/// any.
pub fn looked<R: BufRead>(mut input: R, name: &str) -> io::Result<(impl BufRead + use<R>, Option<String>)> {
    let mut seen = Vec::new();
    // The first line is enough, and more may not come soon.
    while seen.len() < SEEN_MAX && !seen.contains(&b'\n') {
        let chunk = input.fill_buf()?;
        let take = chunk.len().min(SEEN_MAX - seen.len());
        if take == 0 {
            break;
        }
        seen.extend_from_slice(&chunk[..take]);
        input.consume(take);
    }
    let problem = problem(&seen, name);
    Ok((io::Cursor::new(seen).chain(input), problem))
}

fn problem(seen: &[u8], name: &str) -> Option<String> {
    let shown = if name == "-" { "standard input" } else { name };
    let piped = |tool: &str| format!("{tool} | budget-manager import - --source NAME …");
    if let Some((_, what, tool)) = MAGIC.iter().find(|(magic, _, _)| seen.starts_with(magic)) {
        let how = if tool.is_empty() { String::new() } else { format!(": {}", piped(&format!("{tool} {name}"))) };
        return Some(format!("{shown} is {what}{how}"));
    }
    if is_wide(seen) {
        let how = piped(&format!("iconv -f UTF-16 -t UTF-8 {name}"));
        return Some(format!("{shown} is in UTF-16, and UTF-8 is read: {how}"));
    }
    let text = String::from_utf8_lossy(seen.strip_prefix(b"\xef\xbb\xbf").unwrap_or(seen));
    let first = text.trim_start().lines().next().unwrap_or_default().trim_end();
    if first.starts_with('[') {
        let how = piped(&format!("jq -c '.[]' {name}"));
        return Some(format!("{shown} is a JSON array, and one object a line is read: {how}"));
    }
    if first == "{" {
        let how = piped(&format!("jq -c . {name}"));
        return Some(format!("{shown} has a JSON object over several lines, and one a line is read: {how}"));
    }
    let (_, with, flag) = SEPARATORS.iter().find(|(separator, _, _)| is_header(first, *separator))?;
    let how = piped(&format!("mlr --icsv --ifs {flag} --ocsv cat {name}"));
    Some(format!("{shown} has {with} between its values, and commas are read (amounts have a point: 12.34): {how}"))
}

/// Returns whether the text is UTF-16 or UTF-32: with its mark, or with a zero beside each ASCII character.
fn is_wide(seen: &[u8]) -> bool {
    match seen {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [a, b, c, d, ..] => (*a == 0 && *c == 0 && *b != 0) || (*b == 0 && *d == 0 && *a != 0),
        _ => false,
    }
}

/// Returns whether a line would be a header if this stood between its names.
fn is_header(line: &str, separator: char) -> bool {
    let names = line.split(separator).map(|name| name.trim().trim_matches('"'));
    names.filter(|name| COLUMNS.iter().any(|column| column.eq_ignore_ascii_case(name))).count() >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> Option<String> {
        problem(bytes, "f.csv")
    }

    fn wide(text: &str, little: bool) -> Vec<u8> {
        let bytes = |unit: u16| if little { unit.to_le_bytes() } else { unit.to_be_bytes() };
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn what_an_input_is_instead_is_said_by_name_and_with_what_to_do() {
        let header = "account,amount,currency,at\n";
        let utf16 = ["\u{feff}", ""].map(|mark| format!("{mark}{header}"));
        for (bytes, parts) in [
            (wide(&utf16[0], true), ["UTF-16", "iconv -f UTF-16"]),
            (wide(&utf16[0], false), ["UTF-16", "iconv -f UTF-16"]),
            (wide(&utf16[1], true), ["UTF-16", "iconv -f UTF-16"]),
            (wide(&utf16[1], false), ["UTF-16", "iconv -f UTF-16"]),
            (b"account;amount;currency;at\nshop;12,34;EUR;x\n".to_vec(), ["semicolons", "--ifs ';'"]),
            (b"\xef\xbb\xbf\"Account\";\"Amount\"\r\n".to_vec(), ["semicolons", "--ifs ';'"]),
            (b"account\tamount\tcurrency\tat".to_vec(), ["tabs", "--ifs tab"]),
            (b"\n [{\"account\":\"a\"}]".to_vec(), ["JSON array", "jq -c '.[]'"]),
            (b"{\n  \"account\": \"a\"\n}".to_vec(), ["several lines", "jq -c ."]),
            (b"\x1f\x8b\x08\x00".to_vec(), ["gzip", "zcat f.csv | budget-manager import -"]),
            (b"\x28\xb5\x2f\xfd\x00".to_vec(), ["zstd", "zstdcat f.csv"]),
            (b"PK\x03\x04\x14".to_vec(), ["workbook", "CSV"]),
        ] {
            let said = said(&bytes).unwrap_or_default();
            assert!(parts.iter().all(|part| said.contains(part)) && said.contains("f.csv"), "{parts:?}: {said}");
        }
    }

    #[test]
    fn what_can_be_read_is_read() {
        for text in [
            "",
            "account,amount,currency,at\n",
            "id,account,amount,currency,at,memo\n1,a;amount;at,1,EUR,2026-01-31,x\n",
            "{\"account\":\"a\",\"memo\":\"account;amount\"}\n",
            "{}\n",
            "\u{feff}account,amount,currency,at\r\n",
            "something else altogether\n",
        ] {
            assert_eq!(said(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn what_was_looked_at_comes_again() {
        let text = format!("account,amount\n{}", "a,1\n".repeat(5_000));
        for capacity in [1, 7, 10_000] {
            let (mut rest, problem) = looked(io::BufReader::with_capacity(capacity, text.as_bytes()), "-").unwrap();
            let mut read = String::new();
            rest.read_to_string(&mut read).unwrap();
            assert!(read == text && problem.is_none(), "{capacity}");
        }
    }
}
