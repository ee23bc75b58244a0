//! Chat templates, rendered in the environment that transformers gives them.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};

use crate::{methods, python};

const PLAIN: &str = "chat_template";
const MARKED: &str = "chat_template with marks";
const PLAIN_BLOCK: &str = "generation_block";
const MARKED_BLOCK: &str = "marked_generation_block";

pub struct ChatTemplate {
    environment: Environment<'static>,
}

impl ChatTemplate {
    pub fn new(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| e.to_string())?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        minijinja_contrib::add_to_environment(&mut environment);
        environment.set_unknown_method_callback(methods::call);
        environment.set_formatter(|out, _, value| out.write_str(&python::to_str(value)).map_err(Error::from));
        environment.add_filter("tojson", to_json);
        environment.add_filter("trim", trim);
        environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment
            .add_test("sequence", |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map));
        environment.add_filter("string", |value: Value| python::to_str(&value));
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: String| chrono::Local::now().format(&format).to_string());
        environment.add_filter(PLAIN_BLOCK, |text: Value| text);
        environment.add_filter(MARKED_BLOCK, |text: Value| format!("\u{fdd3}{text}\u{fdd4}"));
        environment.add_template_owned(PLAIN, generation_as_filter(source, PLAIN_BLOCK)).map_err(|e| describe(&e))?;
        environment.add_template_owned(MARKED, generation_as_filter(source, MARKED_BLOCK)).map_err(|e| describe(&e))?;
        Ok(ChatTemplate { environment })
    }

    /// `context`: a JSON object of the template's variables.
    pub fn render(&self, context: &str, mark_generation: bool) -> Result<String, String> {
        let context: serde_json::Value =
            serde_json::from_str(context).map_err(|e| format!("the template's variables are not JSON: {e}"))?;
        let template = self.environment.get_template(if mark_generation { MARKED } else { PLAIN }).map_err(|e| describe(&e))?;
        template.render(Value::from(Serde(context))).map_err(|e| describe(&e))
    }
}

/// `{% generation %}` marks what an assistant says. A filter block keeps the tag's white-space control and, as in
/// transformers, what is set inside stays inside.
fn generation_as_filter(source: &str, filter: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(begin) = rest.find("{%") {
        let Some(length) = rest[begin..].find("%}") else { break };
        let tag = &rest[begin..begin + length + 2];
        let inner = tag[2..tag.len() - 2].trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..begin]);
        match inner {
            "generation" => out.push_str(&tag.replacen("generation", &format!("filter {filter}"), 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endfilter", 1)),
            _ => out.push_str(tag),
        }
        rest = &rest[begin + length + 2..];
    }
    out + rest
}

/// transformers' `tojson`: json.dumps with ensure_ascii off, and without the HTML escapes of Jinja's own.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::BadSerialization, "an undefined value has no JSON"));
    }
    let separators: Option<Vec<String>> = options.get("separators")?;
    let style = python::JsonStyle {
        indent: options.get("indent")?,
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: match separators.as_deref() {
            Some([item, key]) => Some((item.clone(), key.clone())),
            _ => None,
        },
    };
    options.assert_all_used()?;
    let json = serde_json::to_value(&value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(Value::from_safe_string(python::json(&json, &style)))
}

/// Jinja's `trim`, which strips what Python calls white space, of any value's text.
fn trim(value: &Value, characters: Option<&str>) -> String {
    let text = python::to_str(value);
    match characters {
        Some(characters) => text.trim_matches(|c| characters.contains(c)).to_string(),
        None => methods::strip(&text).to_string(),
    }
}

fn raise_exception(_: &State, message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The innermost message: what the template itself said, if it raised.
fn describe(error: &Error) -> String {
    match (error.detail(), error.line()) {
        (Some(detail), Some(line)) => format!("{detail} (line {line} of the chat template)"),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, context: &str) -> String {
        ChatTemplate::new(source).unwrap().render(context, false).unwrap()
    }

    #[test]
    fn blocks_are_trimmed_as_in_transformers() {
        let source = "{% for m in messages %}\n  {% if m.role == 'user' %}\nU:{{ m.content }}\n  {% endif %}\n{% endfor %}\n";
        assert_eq!(render(source, r#"{"messages":[{"role":"user","content":"hi"}]}"#), "U:hi\n");
    }

    #[test]
    fn generation_tags_render_their_body_and_keep_white_space_control() {
        let source = "a {%- generation %}\nb{% endgeneration -%}  c";
        assert_eq!(render(source, "{}"), "abc");
        assert_eq!(ChatTemplate::new(source).unwrap().render("{}", true).unwrap(), "a\u{fdd3}b\u{fdd4}c");
    }

    #[test]
    fn python_methods_and_namespaces_work() {
        let source = "{% set ns = namespace(n=0) %}{% for x in xs[::-1] %}{% set ns.n = ns.n + 1 %}{{ x.strip().upper() }}{% endfor %}{{ ns.n }}";
        assert_eq!(render(source, r#"{"xs":[" a ","b"]}"#), "BA2");
    }

    #[test]
    fn python_spelling_of_values() {
        assert_eq!(
            render("{{ a }} {{ b }} {{ c }} {{ d }}|{{ missing }}|{{ a|string }}", r#"{"a":true,"b":null,"c":1.0,"d":[1,"x"]}"#),
            "True None 1.0 [1, 'x']||True"
        );
    }

    #[test]
    fn tojson_is_json_dumps() {
        assert_eq!(render("{{ x|tojson }}", r#"{"x":{"b":"<é>","a":[1,2.0]}}"#), r#"{"b": "<é>", "a": [1, 2.0]}"#);
    }

    #[test]
    fn raised_messages_come_through() {
        let error = ChatTemplate::new("{{ raise_exception('roles must alternate') }}").unwrap().render("{}", false).unwrap_err();
        assert!(error.contains("roles must alternate"), "{error}");
    }
}
