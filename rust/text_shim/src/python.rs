//! Values printed as Python prints them: chat templates are written for Jinja2, whose `{{ x }}` is `str(x)`.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};
use serde_json::Value as Json;

/// `repr(float)`: shortest digits, exponent form below 1e-4 and from 1e16 on.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let magnitude = x.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').expect("{:e} has an exponent");
        let exponent: i32 = exponent.parse().expect("{:e} has a decimal exponent");
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let text = format!("{x}");
    if text.contains('.') {
        text
    } else {
        text + ".0"
    }
}

/// `str(value)`.
pub fn to_str(value: &Value) -> String {
    match value.kind() {
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        ValueKind::Undefined => String::new(),
        _ => repr(value),
    }
}

/// `repr(value)`.
fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Undefined => "Undefined".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number if !value.is_integer() => f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float),
        ValueKind::String => quoted(value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<_> = value.try_iter().into_iter().flatten().map(|item| repr(&item)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Map => {
            let entry = |key: Value| format!("{}: {}", repr(&key), repr(&value.get_item(&key).unwrap_or_default()));
            let entries: Vec<_> = value.try_iter().into_iter().flatten().map(entry).collect();
            format!("{{{}}}", entries.join(", "))
        }
        _ => value.to_string(),
    }
}

/// A string literal: single quotes unless only double quotes avoid escapes.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                let _ = write!(out, "\\x{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// The options of `json.dumps`.
#[derive(Default)]
pub struct JsonStyle {
    pub indent: Option<usize>,
    pub ensure_ascii: bool,
    pub sort_keys: bool,
    /// Between items and after a key; by default ", " and ": ", and "," at the end of a line.
    pub separators: Option<(String, String)>,
}

/// `json.dumps(value, ...)`.
pub fn json(value: &Json, style: &JsonStyle) -> String {
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (if style.indent.is_some() { "," } else { ", " }, ": "),
    };
    let mut writer = JsonWriter { out: String::new(), style, item, key };
    writer.write(value, 0);
    writer.out
}

struct JsonWriter<'a> {
    out: String,
    style: &'a JsonStyle,
    item: &'a str,
    key: &'a str,
}

impl JsonWriter<'_> {
    fn write(&mut self, value: &Json, depth: usize) {
        match value {
            Json::Array(items) => self.write_items(['[', ']'], items.iter().map(|item| (None, item)).collect(), depth),
            Json::Object(map) => {
                let mut entries: Vec<_> = map.iter().map(|(key, item)| (Some(key), item)).collect();
                if self.style.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.write_items(['{', '}'], entries, depth);
            }
            Json::String(text) => self.write_string(text),
            Json::Number(number) if number.is_f64() => self.out.push_str(&float(number.as_f64().unwrap_or_default())),
            scalar => self.out.push_str(&scalar.to_string()),
        }
    }

    fn write_items(&mut self, brackets: [char; 2], items: Vec<(Option<&String>, &Json)>, depth: usize) {
        self.out.push(brackets[0]);
        for (i, (key, item)) in items.iter().enumerate() {
            if i > 0 {
                self.out.push_str(self.item);
            }
            self.new_line(depth + 1);
            if let Some(key) = key {
                self.write_string(key);
                self.out.push_str(self.key);
            }
            self.write(item, depth + 1);
        }
        if !items.is_empty() {
            self.new_line(depth);
        }
        self.out.push(brackets[1]);
    }

    fn write_string(&mut self, text: &str) {
        let literal = Json::String(text.to_string()).to_string();
        if !self.style.ensure_ascii {
            self.out.push_str(&literal);
            return;
        }
        for unit in literal.encode_utf16() {
            match char::from_u32(unit.into()) {
                Some(c) if c.is_ascii() && c != '\x7f' => self.out.push(c),
                _ => {
                    let _ = write!(self.out, "\\u{unit:04x}");
                }
            }
        }
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(width) = self.style.indent {
            self.out.push('\n');
            self.out.push_str(&" ".repeat(width * depth));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_print_as_python_prints_them() {
        for (x, expected) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (123456789012345.0, "123456789012345.0"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (-2.5e-7, "-2.5e-07"),
            (0.0, "0.0"),
            (1.5e300, "1.5e+300"),
        ] {
            assert_eq!(float(x), expected);
        }
    }

    #[test]
    fn json_is_that_of_python() {
        let value = json!({"b": [1, 2.0, true, null, "é\n\"<"], "a": {}, "c": []});
        assert_eq!(super::json(&value, &JsonStyle::default()), r#"{"b": [1, 2.0, true, null, "é\n\"<"], "a": {}, "c": []}"#);
        assert_eq!(
            super::json(&json!({"a": [1, 2]}), &JsonStyle { indent: Some(2), ..Default::default() }),
            "{\n  \"a\": [\n    1,\n    2\n  ]\n}"
        );
        let ascii =
            JsonStyle { ensure_ascii: true, sort_keys: true, separators: Some((",".into(), ":".into())), ..Default::default() };
        assert_eq!(super::json(&value, &ascii), r#"{"a":{},"b":[1,2.0,true,null,"\u00e9\n\"<"],"c":[]}"#);
    }

    #[test]
    fn values_print_as_str() {
        let value = Value::from(minijinja::value::Serde(json!([true, null, "it's", 1, 2.5, {"k": "v"}])));
        assert_eq!(to_str(&value), r#"[True, None, "it's", 1, 2.5, {'k': 'v'}]"#);
        assert_eq!(to_str(&Value::from("plain")), "plain");
    }
}
