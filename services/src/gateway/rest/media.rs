//! The media type of a body: JSON in UTF-8, not encoded. Any other is refused by name.
//! In: headers, the first bytes. Out: the text, or the problem.

use axum::http::HeaderMap;
use axum::http::header::{AsHeaderName, CONTENT_ENCODING, CONTENT_TYPE};

use crate::gateway::problem::{Kind, Problem};

/// The byte order mark that some programs put before text in UTF-8. It is not content.
const BOM: &[u8] = b"\xef\xbb\xbf";

/// The advice to send JSON.
const JSON: &str = "send JSON with the header Content-Type: application/json (curl --json)";

/// Checks that the headers of a body say that it is JSON in UTF-8, not encoded.
pub(super) fn check(headers: &HeaderMap) -> Result<(), Problem> {
    let encodings = headers.get_all(CONTENT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    let mut encodings = encodings.flat_map(|value| value.split(',')).map(str::trim);
    if let Some(encoding) = encodings.find(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity")) {
        let detail = format!("Content-Encoding is {encoding:?}: bodies are taken as they are, not compressed");
        return Err(Problem::new(Kind::UnsupportedEncoding, detail));
    }
    let kind = text_of(headers, CONTENT_TYPE);
    let mut parts = kind.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
    if essence != "application/json" && !(essence.starts_with("application/") && essence.ends_with("+json")) {
        return Err(Problem::new(Kind::UnsupportedMedia, format!("the body is {kind:?}: {JSON}")));
    }
    let charset = parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.eq_ignore_ascii_case("charset"));
    let charset = charset.map(|(_, value)| value.trim_matches('"')).unwrap_or("utf-8");
    if !["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known)) {
        let detail = format!("the body's charset is {charset:?}: JSON is sent in UTF-8 (RFC 8259)");
        return Err(Problem::new(Kind::UnsupportedMedia, detail));
    }
    Ok(())
}

/// The text of a body, without a byte order mark.
pub(super) fn text(body: &[u8]) -> Result<&[u8], Problem> {
    let wide = match body {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        // JSON begins with two ASCII characters, which have zero bytes beside them in UTF-16 and UTF-32.
        [0, first, ..] | [first, 0, ..] => *first != 0,
        _ => false,
    };
    if wide {
        let detail = "the body is in UTF-16 or UTF-32: JSON is sent in UTF-8 (RFC 8259)";
        return Err(Problem::new(Kind::UnsupportedMedia, detail));
    }
    Ok(body.strip_prefix(BOM).unwrap_or(body))
}

fn text_of(headers: &HeaderMap, name: impl AsHeaderName) -> &str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn checked(kind: &'static str, encoding: Option<&'static str>) -> Result<(), Kind> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.extend(encoding.map(|name| (CONTENT_ENCODING, HeaderValue::from_static(name))));
        check(&headers).map_err(|problem| problem.kind)
    }

    #[test]
    fn json_in_utf_8_is_taken_and_everything_else_is_named() {
        for kind in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json;charset=\"utf-8\"",
            "application/merge-patch+json",
        ] {
            assert_eq!(checked(kind, None), Ok(()), "{kind}");
            assert_eq!(checked(kind, Some("identity")), Ok(()), "{kind}");
        }
        for kind in ["", "text/plain", "application/json; charset=utf-16", "application/json; Charset=latin1"] {
            assert_eq!(checked(kind, None), Err(Kind::UnsupportedMedia), "{kind}");
        }
        for encoding in ["gzip", "identity, br", "GZIP"] {
            assert_eq!(checked("application/json", Some(encoding)), Err(Kind::UnsupportedEncoding), "{encoding}");
        }
    }

    #[test]
    fn a_mark_before_the_text_is_no_content_and_wide_text_is_named() {
        assert_eq!(text(b"\xef\xbb\xbf{}"), Ok(&b"{}"[..]));
        assert_eq!(text(b"{}"), Ok(&b"{}"[..]));
        for wide in [&b"\xff\xfe{\0}\0"[..], b"\xfe\xff\0{\0}", b"{\0}\0", b"\0{\0}"] {
            assert!(text(wide).unwrap_err().detail.contains("UTF-16"), "{wide:?}");
        }
    }
}
