//! Python's methods of strings where minijinja's differ or are missing; the rest is minijinja-contrib's.

use minijinja::value::{from_args, Value};
use minijinja::{Error, State};

pub fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if let Some(result) = of_string(text, method, args)? {
            return Ok(result);
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

/// `str.isspace`: Unicode's white space and four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// `str.strip()`.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

fn of_string(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "strip" if args.is_empty() => strip(text).into(),
        "lstrip" if args.is_empty() => text.trim_start_matches(is_space).into(),
        "rstrip" if args.is_empty() => text.trim_end_matches(is_space).into(),
        "split" if args.is_empty() => text.split(is_space).filter(|part| !part.is_empty()).collect(),
        "rsplit" => {
            let (separator, limit): (&str, Option<i64>) = from_args(args)?;
            let mut parts: Vec<_> = match limit.and_then(|n| usize::try_from(n).ok()) {
                Some(limit) => text.rsplitn(limit + 1, separator).collect(),
                None => text.rsplit(separator).collect(),
            };
            parts.reverse();
            parts.into_iter().collect()
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (head, tail) = text.split_once(separator).map_or((text, None), |(head, tail)| (head, Some(tail)));
            three(head, tail.map_or("", |_| separator), tail.unwrap_or_default())
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (head, tail) = text.rsplit_once(separator).map_or((None, text), |(head, tail)| (Some(head), tail));
            three(head.unwrap_or_default(), head.map_or("", |_| separator), tail)
        }
        _ => return Ok(None),
    }))
}

fn three(head: &str, separator: &str, tail: &str) -> Value {
    [head, separator, tail].into_iter().map(Value::from).collect()
}
