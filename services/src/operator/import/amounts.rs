//! The scale of an input's amounts: minor units (1234) or the decimals of their currency (12.34).
//! In: records' fields. Out: amounts in minor units, one scale for a whole input; or the reason why it cannot be told.

use budget_actors::money::Currency;
use clap::ValueEnum;
use perkey::unstable::handler::whole_number;
use serde_json::value::to_raw_value;

use super::record::Fields;

/// The members that hold amounts.
const AMOUNTS: [&str; 2] = ["amount", "limit"];

/// The scale of amounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scale {
    /// Whole minor units: 1234 is 12.34 of a currency with two decimals
    Minor,
    /// Units of the currency, with at most its decimals: 12.34, 12.3, 12
    Major,
}

/// The notation of an amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    /// It means the same in either scale, as its currency has no decimals. Or it is not an amount.
    Either,
    Whole,
    Decimals,
    /// A JSON number with decimals: no other door takes one.
    JsonDecimals,
}

/// The amounts seen in an input, looked at as a whole.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    whole: Option<Example>,
    decimals: Option<Example>,
    json_decimals: Option<Example>,
}

/// The first of its kind: line and text.
type Example = (u64, String);

/// The scale that applies.
#[derive(Clone, Debug)]
pub struct Amounts {
    scale: Option<Scale>,
    /// True if the scale was given: amounts in another notation are still taken if they can be.
    said: bool,
}

impl Seen {
    /// Looks at the amounts of a record; returns whether that is enough to decide.
    pub fn look(&mut self, line: u64, fields: &Fields) -> bool {
        for (_, text, written) in amounts(fields) {
            let kind = match written {
                Written::Either => continue,
                Written::Whole => &mut self.whole,
                Written::Decimals => &mut self.decimals,
                Written::JsonDecimals => &mut self.json_decimals,
            };
            kind.get_or_insert((line, text));
        }
        self.json_decimals.is_some() || self.whole.is_some() && self.decimals.is_some()
    }

    /// The scale of all amounts.
    pub fn decide(&self) -> Result<Amounts, String> {
        let said = "say which it is with --amounts major (12 is 12.00) or --amounts minor (12 is 0.12)";
        let scale = match (&self.whole, &self.decimals, &self.json_decimals) {
            (_, _, Some((line, text))) => {
                return Err(format!(
                    "line {line} has the amount {text}: a number of JSON is whole minor units, at every door (1234 is \
                     12.34); nothing was imported: {said}"
                ));
            }
            (Some((whole, a)), Some((decimals, b)), None) => {
                return Err(format!(
                    "line {whole} has the amount {a}, line {decimals} has {b}: whether {a} means minor units or not \
                     cannot be told, and nothing was imported: {said}"
                ));
            }
            (None, Some(_), None) => Scale::Major,
            (_, None, None) => Scale::Minor,
        };
        Ok(Amounts { scale: Some(scale), said: false })
    }
}

impl Amounts {
    /// The given scale; if none is given, the first amount decides.
    pub fn said(scale: Option<Scale>) -> Self {
        Self { scale, said: scale.is_some() }
    }

    /// Converts a record's amounts to minor units.
    pub fn convert(&mut self, fields: &mut Fields) -> Result<(), String> {
        for (name, text, written) in amounts(fields) {
            let scale = self.scale_of(&text, written)?;
            let is_number = fields.get(name).is_some_and(|raw| !raw.get().starts_with('"'));
            // The handler judges a number in minor units, as when it comes by another door.
            if scale == Scale::Minor && is_number {
                continue;
            }
            let decimals = if scale == Scale::Major { currency(fields)?.decimals() } else { 0 };
            let units = minor_units(&text, decimals)?;
            fields.insert(name.to_owned(), to_raw_value(&units).map_err(|error| error.to_string())?);
        }
        Ok(())
    }

    fn scale_of(&mut self, text: &str, written: Written) -> Result<Scale, String> {
        let scale = match (self.scale, written) {
            (Some(scale), _) if self.said => return Ok(scale),
            (_, Written::Either) => return Ok(self.scale.unwrap_or(Scale::Minor)),
            (_, Written::JsonDecimals) => {
                return Err(format!(
                    "amount {text} has decimals: a number of JSON is whole minor units (1234 is 12.34); --amounts major \
                     takes the other"
                ));
            }
            (Some(Scale::Minor), Written::Decimals) => {
                return Err(format!(
                    "amount {text:?} has decimals, and those before it are whole: say which it is with --amounts"
                ));
            }
            (Some(Scale::Major), Written::Whole) => {
                return Err(format!(
                    "amount {text:?} is whole, and those before it have decimals: say which it is with --amounts"
                ));
            }
            (Some(scale), _) => scale,
            (None, Written::Whole) => Scale::Minor,
            (None, Written::Decimals) => Scale::Major,
        };
        self.scale = Some(scale);
        Ok(scale)
    }
}

/// A record's amounts: the member, its text, its notation.
fn amounts(fields: &Fields) -> Vec<(&'static str, String, Written)> {
    let found = AMOUNTS.into_iter().filter_map(|name| {
        let raw = fields.get(name)?.get();
        let number = raw.starts_with(|first: char| first.is_ascii_digit() || first == '-');
        let text = if number {
            whole_number(raw).unwrap_or_else(|| raw.to_owned())
        } else {
            serde_json::from_str(raw).ok()?
        };
        let written = written(fields, &text, number);
        Some((name, text, written))
    });
    found.collect()
}

fn written(fields: &Fields, text: &str, number: bool) -> Written {
    let whole = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'-' | b'+'));
    let most = currency(fields).map_or(usize::MAX, |currency| usize::from(currency.decimals()));
    match (whole, number) {
        (true, _) if most == 0 => Written::Either,
        (true, _) => Written::Whole,
        (false, true) => Written::JsonDecimals,
        // An amount that is wrong in either scale says nothing about the others.
        (false, false) if parts(text).map_or(true, |(_, decimals)| decimals.len() > most) => Written::Either,
        (false, false) => Written::Decimals,
    }
}

fn currency(fields: &Fields) -> Result<Currency, String> {
    let raw = fields.get("currency").ok_or("there is no currency that says how many decimals the amount may have")?;
    serde_json::from_str(raw.get()).map_err(|error| error.to_string())
}

/// The digits before and behind the point.
fn parts(text: &str) -> Result<(&str, &str), String> {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (whole, decimals) = unsigned.split_once('.').map_or((unsigned, None), |(whole, rest)| (whole, Some(rest)));
    if digits(whole) && decimals.is_none_or(digits) {
        return Ok((whole, decimals.unwrap_or_default()));
    }
    Err(format!("amount {text:?} is neither whole minor units (1234) nor a number with decimals (12.34)"))
}

/// An amount in minor units, from text with at most `most` decimals.
fn minor_units(text: &str, most: u8) -> Result<i64, String> {
    let (whole, decimals) = parts(text)?;
    let width = usize::from(most);
    if decimals.len() > width {
        return Err(match most {
            0 => {
                format!("amount {text:?} has decimals: whole minor units are wanted (1234 is 12.34 EUR, and 1234 JPY)")
            }
            _ => format!("amount {text:?} has more decimals than its currency, which has {most}"),
        });
    }
    let sign = if text.starts_with('-') { "-" } else { "" };
    let number = format!("{sign}{whole}{decimals:0<width$}");
    number.parse().map_err(|_| format!("amount {text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(amount: &str, currency: &str) -> Fields {
        serde_json::from_str(&format!(r#"{{"amount":{amount},"currency":"{currency}"}}"#)).unwrap()
    }

    fn converted(amounts: &mut Amounts, amount: &str, currency: &str) -> Result<String, String> {
        let mut fields = fields(amount, currency);
        amounts.convert(&mut fields).map(|()| fields["amount"].get().to_owned())
    }

    #[test]
    fn amounts_are_exact_or_refused() {
        for (text, most, units) in [
            ("1234", 0, 1234),
            ("-5", 0, -5),
            ("+5", 2, 500),
            ("12.34", 2, 1234),
            ("12.3", 2, 1230),
            ("12", 2, 1200),
            ("-0.05", 2, -5),
            ("1.234", 3, 1234),
            ("9223372036854775807", 0, i64::MAX),
            ("-92233720368547758.08", 2, i64::MIN),
        ] {
            assert_eq!(minor_units(text, most), Ok(units), "{text}");
        }
        for bad in
            ["", "-", "12.", ".5", "1.234", "1,5", "1e3", " 1", "--1", "0x1", "92233720368547758.08", "1.2.3", "NaN"]
        {
            assert!(minor_units(bad, 2).is_err(), "{bad}");
        }
        assert!(minor_units("1.0", 0).is_err());
    }

    #[test]
    fn a_currency_has_its_own_decimals() {
        let mut major = Amounts::said(Some(Scale::Major));
        for (text, currency, units) in
            [("12.3", "EUR", "1230"), ("12", "EUR", "1200"), ("12", "JPY", "12"), ("1.234", "KWD", "1234")]
        {
            assert_eq!(converted(&mut major, &format!("\"{text}\""), currency).as_deref(), Ok(units));
            assert_eq!(converted(&mut major, text, currency).as_deref(), Ok(units), "as a number");
        }
        for (text, currency, why) in [
            ("12.345", "EUR", "more decimals than its currency, which has 2"),
            ("12.5", "JPY", "has decimals"),
            ("1", "XQZ", "XQZ"),
        ] {
            let refused = converted(&mut major, &format!("\"{text}\""), currency).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        let mut minor = Amounts::said(Some(Scale::Minor));
        assert_eq!(converted(&mut minor, "\"1234\"", "KWD").as_deref(), Ok("1234"));
        assert!(converted(&mut minor, "\"12.34\"", "EUR").is_err());
        assert_eq!(converted(&mut minor, "1250.0", "EUR").as_deref(), Ok("1250.0"), "the handler judges it");
    }

    #[test]
    fn a_whole_input_has_one_scale_or_somebody_says_which() {
        let decide = |texts: &[(&str, &str)]| {
            let mut seen = Seen::default();
            for (line, (text, currency)) in (1..).zip(texts) {
                seen.look(line, &fields(text, currency));
            }
            seen.decide().map(|amounts| amounts.scale.unwrap())
        };
        assert_eq!(decide(&[]), Ok(Scale::Minor));
        assert_eq!(decide(&[("\"12\"", "EUR"), ("13", "EUR")]), Ok(Scale::Minor));
        let major = decide(&[("\"12.34\"", "EUR"), ("\"1500\"", "JPY"), ("\"nonsense\"", "EUR")]);
        assert_eq!(major, Ok(Scale::Major), "yen have no decimals, so theirs say nothing");
        let mixed = decide(&[("\"12.34\"", "EUR"), ("\"12\"", "EUR")]).unwrap_err();
        for part in ["line 1 has 12.34", "line 2 has the amount 12,", "--amounts major", "nothing was imported"] {
            assert!(mixed.contains(part), "{mixed} lacks {part}");
        }
        assert_eq!(decide(&[("1250.0", "EUR"), ("\"1.234\"", "EUR")]), Ok(Scale::Minor), "as at every door");
        let json = decide(&[("12.5", "EUR")]).unwrap_err();
        assert!(json.contains("line 1 has the amount 12.5") && json.contains("--amounts"), "{json}");
    }

    #[test]
    fn what_is_read_once_is_decided_by_its_first_amount() {
        let mut first = Amounts::said(None);
        assert_eq!(converted(&mut first, "\"1500\"", "JPY").as_deref(), Ok("1500"), "says nothing");
        assert_eq!(converted(&mut first, "\"12.5\"", "EUR").as_deref(), Ok("1250"));
        assert!(converted(&mut first, "\"12\"", "EUR").unwrap_err().contains("--amounts"));
        let mut first = Amounts::said(None);
        assert!(converted(&mut first, "12.5", "EUR").is_err());
        assert_eq!(converted(&mut first, "\"12\"", "EUR").as_deref(), Ok("12"));
        assert!(converted(&mut first, "\"12.5\"", "EUR").unwrap_err().contains("--amounts"));
    }
}
