//! Lines of JSON, each a flat object.

use std::fmt::Write;
use std::time::Duration;

/// An object under construction; keys keep the order in which they were added.
#[derive(Debug, Default)]
pub(crate) struct Object(String);

impl Object {
    pub(crate) fn text(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        self.quoted(value);
        self
    }

    pub(crate) fn texts(mut self, key: &str, values: &[String]) -> Self {
        self.key(key);
        for (i, value) in values.iter().enumerate() {
            self.0.push(if i == 0 { '[' } else { ',' });
            self.quoted(value);
        }
        self.0.push_str(if values.is_empty() { "[]" } else { "]" });
        self
    }

    pub(crate) fn integer(self, key: &str, value: impl Into<i128>) -> Self {
        self.raw(key, &value.into().to_string())
    }

    /// A number with three decimals. JSON has no infinity, which becomes `null`.
    pub(crate) fn number(self, key: &str, value: f64) -> Self {
        if value.is_finite() {
            self.raw(key, &format!("{value:.3}"))
        } else {
            self.raw(key, "null")
        }
    }

    pub(crate) fn maybe(self, key: &str, value: Option<f64>) -> Self {
        self.number(key, value.unwrap_or(f64::NAN))
    }

    pub(crate) fn millis(self, key: &str, value: Duration) -> Self {
        self.number(key, value.as_secs_f64() * 1e3)
    }

    pub(crate) fn seconds(self, key: &str, value: Duration) -> Self {
        self.raw(key, &format!("{:.6}", value.as_secs_f64()))
    }

    /// The line, without its newline.
    pub(crate) fn line(mut self) -> String {
        self.0.push('}');
        if !self.0.starts_with('{') {
            self.0.insert(0, '{');
        }
        self.0
    }

    fn raw(mut self, key: &str, value: &str) -> Self {
        self.key(key);
        self.0.push_str(value);
        self
    }

    fn key(&mut self, key: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        self.quoted(key);
        self.0.push(':');
    }

    fn quoted(&mut self, text: &str) {
        self.0.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => self.0.extend(['\\', c]),
                '\n' => self.0.push_str("\\n"),
                c if u32::from(c) < 0x20 => {
                    // Writing to a string does not fail.
                    let _ = write!(self.0, "\\u{:04x}", u32::from(c));
                }
                c => self.0.push(c),
            }
        }
        self.0.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_escaped() {
        assert_eq!(Object::default().line(), "{}");
        let line = Object::default()
            .text("error", "a \"b\" \\ \u{1}\n\u{e9}")
            .integer("pid", 7_u32)
            .number("x", 0.5)
            .maybe("y", None)
            .texts("all", &["/a".to_owned(), "/b".to_owned()])
            .line();
        assert_eq!(
            line,
            "{\"error\":\"a \\\"b\\\" \\\\ \\u0001\\n\u{e9}\",\"pid\":7,\"x\":0.500,\"y\":null,\
             \"all\":[\"/a\",\"/b\"]}"
        );
    }
}
