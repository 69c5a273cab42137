//! Reads the fields of a JSON object one by one, so that one answer reports all refused fields.

use super::Problem;
use super::problem::FieldError;
use http::StatusCode;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// The most errors that an answer lists, so that the answer is not much longer than the request.
const MOST_ERRORS: usize = 100;

/// The errors of a request's fields.
#[derive(Default)]
pub(super) struct Refused(Vec<FieldError>);

impl Refused {
    pub(super) fn refuse(&mut self, path: &[&str], detail: impl Into<Cow<'static, str>>) {
        if self.0.len() < MOST_ERRORS {
            self.0.push(FieldError::new(path, detail));
        }
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.0.iter().any(|error| error.is_of(field))
    }

    /// Checks that no field was refused.
    ///
    /// # Errors
    /// [`Problem`] if any field was refused.
    pub(super) fn finish(self) -> Result<(), Problem> {
        if self.0.is_empty() { Ok(()) } else { Err(Problem::invalid(self.0)) }
    }
}

/// The fields of a body that are not yet read, and the errors of the refused fields.
pub(super) struct Fields<'a> {
    fields: Vec<(String, &'a RawValue)>,
    pub(super) refused: Refused,
}

impl<'a> Fields<'a> {
    /// Parses the body as an object.
    ///
    /// # Errors
    /// [`Problem`]: 400 if the body is not well-formed JSON, 422 if it is not an object.
    pub(super) fn new(body: &'a [u8]) -> Result<Self, Problem> {
        let broken = |_| {
            let detail = "the body is not well-formed JSON; send the fields as a JSON object";
            Problem::new(StatusCode::BAD_REQUEST, "invalid_json", detail)
        };
        // Parses the whole body first, so that broken JSON is reported before a wrong type.
        let body: &RawValue = serde_json::from_slice(body).map_err(broken)?;
        let object = serde_json::from_str(body.get()).map(|Object(fields)| fields);
        let fields = object.map_err(|_| {
            let detail = "the body is not a JSON object; send the fields as a JSON object";
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", detail)
        })?;
        let mut refused = Refused::default();
        let mut fields: Vec<(String, &RawValue)> = fields;
        let mut seen: Vec<String> = Vec::new();
        fields.retain(|(name, _)| {
            let is_first = !seen.contains(name);
            if is_first {
                seen.push(name.clone());
            } else if !refused.has(name) {
                refused.refuse(&[name], "the body has a field twice; send each field once");
            }
            is_first
        });
        Ok(Self { fields, refused })
    }

    /// Removes and returns a field. `None` if it is absent or already refused.
    fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.fields.iter().position(|(field, _)| field == name)?;
        let (_, value) = self.fields.swap_remove(at);
        (!self.refused.has(name)).then_some(value)
    }

    fn typed<T: Deserialize<'a>>(&mut self, name: &str, expected: &'static str) -> Option<T> {
        let value = serde_json::from_str(self.take(name)?.get());
        value.map_err(|_| self.refused.refuse(&[name], of_type(name, expected))).ok()
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.typed(name, "a text")
    }

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        self.typed(name, "true or false")
    }

    pub(super) fn texts(&mut self, name: &str) -> Option<Vec<String>> {
        let entries: Vec<&RawValue> = self.typed(name, "a list of texts")?;
        let mut texts = Vec::with_capacity(entries.len());
        for (place, entry) in entries.into_iter().enumerate() {
            match serde_json::from_str(entry.get()) {
                Ok(text) => texts.push(text),
                Err(_) => self.refused.refuse(
                    &[name, &place.to_string()],
                    format!("the field {name} lists a value that is not a text; send only texts"),
                ),
            }
        }
        Some(texts)
    }

    /// Returns `Some(None)` if the field is null. `T` is the type of a field that is not null.
    #[allow(clippy::option_option, reason = "absent, null and a value are three things")]
    pub(super) fn nullable<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self, &str) -> Option<T>,
    ) -> Option<Option<T>> {
        let is_null = |(field, value): &(String, &RawValue)| field == name && value.get() == "null";
        if self.fields.iter().any(is_null) {
            return self.take(name).map(|_| None);
        }
        read(self, name).map(Some)
    }

    /// Reads a whole number.
    ///
    /// A number with a fraction of zeros, or with an exponent, is whole as well (`30.0`, `3e1`). A
    /// number beyond 64 bits becomes the greatest or the least 64-bit number.
    pub(super) fn integer(&mut self, name: &str) -> Option<i64> {
        let integer = integer(self.take(name)?.get());
        if integer.is_none() {
            self.refused.refuse(&[name], of_type(name, "a whole number"));
        }
        integer
    }

    /// Refuses all fields that were not taken.
    pub(super) fn finish(mut self) -> Refused {
        for (name, _) in self.fields {
            if !self.refused.has(&name) {
                // Does not repeat the name, which may be a secret that was sent by mistake.
                let detail =
                    "the body has an unknown field; correct its name or leave the field out";
                self.refused.refuse(&[&name], detail);
            }
        }
        self.refused
    }
}

fn of_type(name: &str, expected: &str) -> String {
    format!("the field {name} has a value of the wrong type; send {expected}")
}

/// An object with its fields in the order of the text, including repeated fields.
struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor;

        impl<'de> Visitor<'de> for ObjectVisitor {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    if fields.len() >= MOST_FIELDS {
                        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                        break;
                    }
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }

        deserializer.deserialize_map(ObjectVisitor)
    }
}

/// The most fields of a body that are checked.
///
/// No valid body has so many, so the first 64 fields of a longer body already include a refused
/// one. The limit also bounds the search for repeated fields, whose cost is the square of their
/// number.
const MOST_FIELDS: usize = 64;

/// Reads the text of a JSON number (RFC 8259 section 6) exactly. `None` if the text is not a
/// number, or the number is not whole.
fn integer(text: &str) -> Option<i64> {
    let (is_negative, text) = text.strip_prefix('-').map_or((false, text), |text| (true, text));
    if !text.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let significant = digits.trim_end_matches('0');
    if significant.is_empty() {
        return Some(0);
    }
    let (exponent_sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => (-1, exponent),
        None => (1, exponent.strip_prefix('+').unwrap_or(exponent)),
    };
    // An exponent that does not fit into 64 bits counts as the largest that fits.
    let exponent: i64 = exponent.parse().unwrap_or(i64::MAX);
    let trimmed = digits.len().saturating_sub(significant.len());
    let places =
        |count: usize| i64::try_from(count).expect("no text has more than isize::MAX bytes");
    let exponent = exponent
        .saturating_mul(exponent_sign)
        .saturating_sub(places(fraction.len()))
        .saturating_add(places(trimmed));
    if exponent < 0 {
        return None;
    }
    let limit = if is_negative { i64::MIN } else { i64::MAX };
    let zeros = usize::try_from(exponent).ok().filter(|zeros| *zeros < 20);
    let Some(zeros) = zeros else { return Some(limit) };
    let sign = if is_negative { "-" } else { "" };
    Some(format!("{sign}{significant}{}", "0".repeat(zeros)).parse().unwrap_or(limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_whole_if_its_value_is() {
        for (text, expected) in [
            ("30", Some(30)),
            ("30.0", Some(30)),
            ("30.000000000000000000000000000", Some(30)),
            ("3e1", Some(30)),
            ("3E+1", Some(30)),
            ("300e-1", Some(30)),
            ("0.3e2", Some(30)),
            ("0.003e4", Some(30)),
            ("30000000000000000000000e-21", Some(30)),
            ("-0.0", Some(0)),
            ("-0", Some(0)),
            ("0e400", Some(0)),
            ("0.0e-99999999999999999999", Some(0)),
            ("-1.0", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("9223372036854775807.0", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", Some(i64::MAX)),
            ("1e400", Some(i64::MAX)),
            ("-1e400", Some(i64::MIN)),
            ("1e99999999999999999999", Some(i64::MAX)),
            ("9007199254740993.0", Some(9_007_199_254_740_993)),
            ("30.5", None),
            ("30.00000000000000000000000000001", None),
            ("3e-1", None),
            ("1e-400", None),
            ("1e-99999999999999999999", None),
            ("305e-1", None),
            ("\"30\"", None),
            ("null", None),
            ("true", None),
            ("[30]", None),
            ("{}", None),
        ] {
            assert_eq!(integer(text), expected, "{text}");
        }
    }
}
