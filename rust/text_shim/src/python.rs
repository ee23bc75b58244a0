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

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
pub fn json(value: &Json, indent: Option<usize>) -> String {
    let mut out = String::new();
    write_json(&mut out, value, indent, 0);
    out
}

fn write_json(out: &mut String, value: &Json, indent: Option<usize>, depth: usize) {
    match value {
        Json::Array(items) => {
            let write = |out: &mut String, i: usize| write_json(out, &items[i], indent, depth + 1);
            write_container(out, ('[', ']'), items.len(), indent, depth, write);
        }
        Json::Object(map) => {
            let entries: Vec<_> = map.iter().collect();
            let write = |out: &mut String, i: usize| {
                let (key, item) = entries[i];
                out.push_str(&Json::String(key.clone()).to_string());
                out.push_str(": ");
                write_json(out, item, indent, depth + 1);
            };
            write_container(out, ('{', '}'), entries.len(), indent, depth, write);
        }
        Json::Number(number) if number.is_f64() => out.push_str(&float(number.as_f64().unwrap_or_default())),
        scalar => out.push_str(&scalar.to_string()),
    }
}

fn write_container(
    out: &mut String,
    brackets: (char, char),
    count: usize,
    indent: Option<usize>,
    depth: usize,
    write_item: impl Fn(&mut String, usize),
) {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(width * depth));
        }
    };
    out.push(brackets.0);
    for i in 0..count {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        new_line(out, depth + 1);
        write_item(out, i);
    }
    if count > 0 {
        new_line(out, depth);
    }
    out.push(brackets.1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn floats_print_as_python_prints_them() {
        for (x, expected) in [
            (1.0, "1.0"), (0.1, "0.1"), (1e16, "1e+16"), (123456789012345.0, "123456789012345.0"), (1e-5, "1e-05"),
            (0.0001, "0.0001"), (-2.5e-7, "-2.5e-07"), (0.0, "0.0"), (1.5e300, "1.5e+300"),
        ] {
            assert_eq!(float(x), expected);
        }
    }

    #[test]
    fn json_is_that_of_python() {
        let value = json!({"b": [1, 2.0, true, null, "é\n\"<"], "a": {}, "c": []});
        assert_eq!(super::json(&value, None), r#"{"b": [1, 2.0, true, null, "é\n\"<"], "a": {}, "c": []}"#);
        assert_eq!(super::json(&json!({"a": [1, 2]}), Some(2)), "{\n  \"a\": [\n    1,\n    2\n  ]\n}");
    }

    #[test]
    fn values_print_as_str() {
        let value = Value::from(minijinja::value::Serde(json!([true, null, "it's", 1, 2.5, {"k": "v"}])));
        assert_eq!(to_str(&value), r#"[True, None, "it's", 1, 2.5, {'k': 'v'}]"#);
        assert_eq!(to_str(&Value::from("plain")), "plain");
    }
}
