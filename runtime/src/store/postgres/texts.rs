//! Texts as PostgreSQL can hold them, without U+0000, and the columns of its rows.
//! In: texts, rows. Out: texts to store, and the original ones; values.

use std::borrow::Cow;

use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::store::StoreError;
use crate::store::query::sql::{Cells, SqlCell};

impl Cells for PgRow {
    fn get<'r, T: SqlCell<'r>>(&'r self, at: usize) -> Result<T, StoreError> {
        self.try_get(at).map_err(|error| StoreError::Corrupt(error.to_string()))
    }

    fn given(stored: &str) -> Cow<'_, str> {
        given(stored)
    }
}

/// The escape character: it stands for itself when it comes twice, for U+0000 when a 0 follows.
const MARK: char = '\u{241B}';

/// `text` as it is stored.
pub(super) fn stored(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', MARK]) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\0' => escaped.extend([MARK, '0']),
            MARK => escaped.extend([MARK, MARK]),
            other => escaped.push(other),
        }
    }
    Cow::Owned(escaped)
}

/// The text that [`stored`] was given.
fn given(text: &str) -> Cow<'_, str> {
    if !text.contains(MARK) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            MARK => plain.extend(chars.next().map(|next| if next == '0' { '\0' } else { next })),
            other => plain.push(other),
        }
    }
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_comes_back(text in "[a0\u{0}\u{241B}é]{0,12}") {
            let stored = stored(&text);
            prop_assert!(!stored.contains('\0'));
            prop_assert_eq!(given(&stored), text.as_str());
        }
    }
}
