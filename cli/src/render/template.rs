//! Go templates for `--format`, with docker's functions.

use crate::error::{CliError, Result};
use gtmpl::{Context, Template};
use gtmpl_value::{FuncError, Value};
use serde_json::Value as Json;

/// A parsed template.
pub(crate) struct Format {
    template: Template,
}

impl Format {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut template = Template::default();
        type Function = fn(&[Value]) -> std::result::Result<Value, FuncError>;
        let functions: [(&str, Function); 10] = [
            ("json", json),
            ("upper", |args| text_function(args, str::to_uppercase)),
            ("lower", |args| text_function(args, str::to_lowercase)),
            ("title", |args| text_function(args, title)),
            ("pad", pad),
            ("truncate", truncate),
            ("join", join),
            ("split", split),
            ("println", |args| {
                Ok(Value::from(format!("{}\n", spaced(args))))
            }),
            ("table", |_| Ok(Value::from(""))),
        ];
        for (name, function) in functions {
            template.add_func(name, function);
        }
        template
            .parse(unescaped(text))
            .map_err(|err| CliError::Template(err.to_string()))?;
        Ok(Self { template })
    }

    /// Fills the template with `value`.
    pub(crate) fn render(&self, value: &Json) -> Result<String> {
        let context = Context::from(to_template(value));
        self.template
            .render(&context)
            .map_err(|err| CliError::Template(err.to_string()))
    }
}

/// Docker's CLI reads `\t` and `\n` in a format as the characters.
fn unescaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn to_template(value: &Json) -> Value {
    match value {
        Json::Null => Value::Nil,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::Nil,
        },
        Json::String(text) => Value::String(text.clone()),
        Json::Array(values) => Value::Array(values.iter().map(to_template).collect()),
        Json::Object(fields) => Value::Map(
            fields
                .iter()
                .map(|(name, value)| (name.clone(), to_template(value)))
                .collect(),
        ),
    }
}

fn from_template(value: &Value) -> Json {
    match value {
        Value::Bool(value) => Json::Bool(*value),
        Value::String(text) => Json::String(text.clone()),
        Value::Array(values) => Json::Array(values.iter().map(from_template).collect()),
        Value::Map(fields) | Value::Object(fields) => {
            let sorted: std::collections::BTreeMap<_, _> = fields
                .iter()
                .map(|(name, value)| (name.clone(), from_template(value)))
                .collect();
            Json::Object(sorted.into_iter().collect())
        }
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => Json::from(number),
            (None, Some(number)) => Json::from(number),
            (None, None) => Json::Null,
        },
        Value::NoValue | Value::Nil | Value::Function(_) => Json::Null,
    }
}

fn argument(args: &[Value], at: usize) -> std::result::Result<&Value, FuncError> {
    args.get(at)
        .ok_or(FuncError::AtLeastXArgs("function".to_owned(), at + 1))
}

fn json(args: &[Value]) -> std::result::Result<Value, FuncError> {
    Ok(Value::from(from_template(argument(args, 0)?).to_string()))
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn text_function(
    args: &[Value],
    function: impl Fn(&str) -> String,
) -> std::result::Result<Value, FuncError> {
    Ok(Value::from(function(&text_of(argument(args, 0)?))))
}

fn title(text: &str) -> String {
    let mut start = true;
    text.chars()
        .map(|letter| {
            let raised = if start {
                letter.to_ascii_uppercase()
            } else {
                letter
            };
            start = letter.is_whitespace();
            raised
        })
        .collect()
}

fn number_of(value: &Value) -> usize {
    text_of(value).parse().unwrap_or(0)
}

fn pad(args: &[Value]) -> std::result::Result<Value, FuncError> {
    let (text, before, after) = (argument(args, 0)?, argument(args, 1)?, argument(args, 2)?);
    let (before, after) = (" ".repeat(number_of(before)), " ".repeat(number_of(after)));
    Ok(Value::from(format!("{before}{}{after}", text_of(text))))
}

fn truncate(args: &[Value]) -> std::result::Result<Value, FuncError> {
    let length = number_of(argument(args, 1)?);
    Ok(Value::from(
        text_of(argument(args, 0)?)
            .chars()
            .take(length)
            .collect::<String>(),
    ))
}

fn join(args: &[Value]) -> std::result::Result<Value, FuncError> {
    let separator = text_of(argument(args, 1)?);
    Ok(Value::from(match argument(args, 0)? {
        Value::Array(values) => values
            .iter()
            .map(text_of)
            .collect::<Vec<_>>()
            .join(&separator),
        other => text_of(other),
    }))
}

fn split(args: &[Value]) -> std::result::Result<Value, FuncError> {
    let (text, separator) = (text_of(argument(args, 0)?), text_of(argument(args, 1)?));
    Ok(Value::Array(
        text.split(&separator).map(Value::from).collect(),
    ))
}

fn spaced(args: &[Value]) -> String {
    args.iter().map(text_of).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(template: &str, expected: &str) {
        let value =
            json!({"Name": "web", "Labels": {"b": "2", "a": "1"}, "Args": ["x", "y"], "N": 3});
        assert_eq!(
            Format::parse(template).unwrap().render(&value).unwrap(),
            expected,
            "{template}"
        );
    }

    #[test]
    fn templates_do_what_dockers_do() {
        check("{{.Name}}\\t{{.N}}", "web\t3");
        check("{{json .Labels}}", r#"{"a":"1","b":"2"}"#);
        check("{{upper .Name}} {{title .Name}}", "WEB Web");
        check("{{join .Args \",\"}}", "x,y");
        check("{{range .Args}}<{{.}}>{{end}}", "<x><y>");
        check("{{if eq .Name \"web\"}}yes{{end}}", "yes");
    }

    #[test]
    fn a_broken_template_is_an_error() {
        assert!(Format::parse("{{.Name").is_err());
    }
}
