//! Reads a JSON body field by field, so that nothing a client says can be dropped unseen.
//!
//! Every field is taken out by name; what is left at the end and says more than a zero value is refused with its path.
//! Like Go's decoder, `null` is the same as absent, and names match without regard to case.

use crate::error::{ApiError, ApiResult};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The fields of one object that have not been read yet.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    /// The fields of a body; an absent body has none.
    pub(crate) fn of(value: Value) -> ApiResult<Self> {
        Self::at(value, String::new())
    }

    fn at(value: Value, path: String) -> ApiResult<Self> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            Value::Null => Ok(Self {
                map: Map::new(),
                path,
            }),
            other => Err(wrong(&path, "an object", &other)),
        }
    }

    /// Where a field of this object is, in the client's words.
    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// An error about a field of this object.
    pub(crate) fn error(&self, name: &str, reason: impl std::fmt::Display) -> ApiError {
        ApiError::field(&self.path_of(name), reason)
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let value = match self.map.remove(name) {
            Some(value) => value,
            None => {
                let key = self
                    .map
                    .keys()
                    .find(|key| key.eq_ignore_ascii_case(name))?
                    .clone();
                self.map.remove(&key)?
            }
        };
        (!value.is_null()).then_some(value)
    }

    /// Text; absent: empty.
    pub(crate) fn string(&mut self, name: &str) -> ApiResult<String> {
        match self.take(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text),
            Some(other) => Err(wrong(&self.path_of(name), "a string", &other)),
        }
    }

    /// A switch, if it is there.
    pub(crate) fn opt_bool(&mut self, name: &str) -> ApiResult<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong(&self.path_of(name), "true or false", &other)),
        }
    }

    /// A switch; absent: off.
    pub(crate) fn bool(&mut self, name: &str) -> ApiResult<bool> {
        Ok(self.opt_bool(name)?.unwrap_or_default())
    }

    /// A whole number that fits `T`, if it is there.
    pub(crate) fn opt_int<T: TryFrom<i128>>(&mut self, name: &str) -> ApiResult<Option<T>> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value
            .as_i64()
            .map(i128::from)
            .or_else(|| value.as_u64().map(i128::from));
        match number.map(T::try_from) {
            Some(Ok(number)) => Ok(Some(number)),
            Some(Err(_)) => Err(self.error(name, format!("{value} is out of range"))),
            None => Err(wrong(&self.path_of(name), "a whole number", &value)),
        }
    }

    /// A whole number; absent: zero.
    pub(crate) fn int<T: TryFrom<i128> + Default>(&mut self, name: &str) -> ApiResult<T> {
        Ok(self.opt_int(name)?.unwrap_or_default())
    }

    /// A number with a fraction, if it is there.
    pub(crate) fn opt_f64(&mut self, name: &str) -> ApiResult<Option<f64>> {
        match self.take(name) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(wrong(&self.path_of(name), "a number", &value)),
            },
        }
    }

    /// A list of texts; absent: empty.
    pub(crate) fn strings(&mut self, name: &str) -> ApiResult<Vec<String>> {
        Ok(self.opt_strings(name)?.unwrap_or_default())
    }

    /// A list of texts, if it is there.
    pub(crate) fn opt_strings(&mut self, name: &str) -> ApiResult<Option<Vec<String>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| match item {
                    Value::String(text) => Ok(text),
                    other => {
                        let path = format!("{}[{index}]", self.path_of(name));
                        Err(wrong(&path, "a string", &other))
                    }
                })
                .collect::<ApiResult<_>>()
                .map(Some),
            Some(other) => Err(wrong(&self.path_of(name), "a list of strings", &other)),
        }
    }

    /// A list of whole numbers; absent: empty.
    pub(crate) fn ints<T: TryFrom<i128>>(&mut self, name: &str) -> ApiResult<Vec<T>> {
        let path = self.path_of(name);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| {
                    item.as_i64()
                        .and_then(|number| T::try_from(i128::from(number)).ok())
                        .ok_or_else(|| wrong(&path, "a list of whole numbers in range", item))
                })
                .collect(),
            Some(other) => Err(wrong(&path, "a list of whole numbers", &other)),
        }
    }

    /// A command: a list of texts, or one text, which Docker reads as a list of one.
    pub(crate) fn command(&mut self, name: &str) -> ApiResult<Option<Vec<String>>> {
        if let Some(Value::String(_)) = self.map.get(name) {
            return Ok(Some(vec![self.string(name)?]));
        }
        self.opt_strings(name)
    }

    /// Texts by name; absent: empty.
    pub(crate) fn labels(&mut self, name: &str) -> ApiResult<BTreeMap<String, String>> {
        let path = self.path_of(name);
        match self.take(name) {
            None => Ok(BTreeMap::new()),
            Some(Value::Object(map)) => map
                .into_iter()
                .map(|(key, value)| match value {
                    Value::String(text) => Ok((key, text)),
                    other => Err(wrong(&format!("{path}.{key}"), "a string", &other)),
                })
                .collect(),
            Some(other) => Err(wrong(&path, "an object of strings", &other)),
        }
    }

    /// The keys of an object whose values say nothing (Go's sets: `{"80/tcp": {}}`).
    pub(crate) fn set(&mut self, name: &str) -> ApiResult<Vec<String>> {
        let path = self.path_of(name);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Object(map)) => map
                .into_iter()
                .map(|(key, value)| {
                    if is_zero(&value) {
                        Ok(key)
                    } else {
                        Err(wrong(&format!("{path}.{key}"), "{}", &value))
                    }
                })
                .collect(),
            Some(other) => Err(wrong(&path, "an object", &other)),
        }
    }

    /// An inner object, if it is there.
    pub(crate) fn object(&mut self, name: &str) -> ApiResult<Option<Fields>> {
        let path = self.path_of(name);
        self.take(name)
            .map(|value| Fields::at(value, path))
            .transpose()
    }

    /// An inner object; absent: one without fields.
    pub(crate) fn object_or_empty(&mut self, name: &str) -> ApiResult<Fields> {
        let path = self.path_of(name);
        Fields::at(self.take(name).unwrap_or(Value::Null), path)
    }

    /// A list of objects; absent: empty.
    pub(crate) fn objects(&mut self, name: &str) -> ApiResult<Vec<Fields>> {
        let path = self.path_of(name);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items
                .into_iter()
                .enumerate()
                .map(|(index, item)| Fields::at(item, format!("{path}[{index}]")))
                .collect(),
            Some(other) => Err(wrong(&path, "a list", &other)),
        }
    }

    /// Objects by name; absent: empty.
    pub(crate) fn objects_by_name(&mut self, name: &str) -> ApiResult<Vec<(String, Fields)>> {
        let path = self.path_of(name);
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Object(map)) => map
                .into_iter()
                .map(|(key, value)| {
                    let inner = Fields::at(value, format!("{path}.{key}"))?;
                    Ok((key, inner))
                })
                .collect(),
            Some(other) => Err(wrong(&path, "an object", &other)),
        }
    }

    /// The fields that are left, each a list of objects.
    pub(crate) fn take_lists(mut self) -> ApiResult<Vec<(String, Vec<Fields>)>> {
        let names: Vec<String> = self.map.keys().cloned().collect();
        names
            .into_iter()
            .map(|name| Ok((name.clone(), self.objects(&name)?)))
            .collect()
    }

    /// One of the words; `None` when absent or empty.
    pub(crate) fn word<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&str, T)],
    ) -> ApiResult<Option<T>> {
        let text = self.string(name)?;
        if text.is_empty() {
            return Ok(None);
        }
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                let known = known.join(", ");
                Err(self.error(name, format!("`{text}`: expected one of {known}")))
            }
        }
    }

    /// Takes fields that mean nothing on this side: client-side notes and settings of other systems.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.take(name);
        }
    }

    /// Refuses fields that Docker knows and this daemon does not do, unless they are zero.
    pub(crate) fn refuse(&mut self, fields: &[(&str, &str)]) -> ApiResult<()> {
        for (name, why) in fields {
            if let Some(value) = self.take(name)
                && !is_zero(&value)
            {
                let path = self.path_of(name);
                return Err(ApiError::bad_request(format!(
                    "field `{path}` is not supported: {why}"
                )));
            }
        }
        Ok(())
    }

    /// Refuses what nobody has read.
    pub(crate) fn done(self) -> ApiResult<()> {
        match self.map.iter().find(|(_, value)| !is_zero(value)) {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::bad_request(format!(
                "unknown field `{}`",
                self.path_of(name)
            ))),
        }
    }
}

/// Says nothing: what Go writes for a field that nobody set.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_zero),
    }
}

fn wrong(path: &str, expected: &str, found: &Value) -> ApiError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let path = if path.is_empty() { "body" } else { path };
    ApiError::field(path, format!("expected {expected}, found {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::of(value).unwrap()
    }

    #[test]
    fn what_is_not_read_is_refused_with_its_path() {
        let mut body = fields(json!({"A": {"B": {"C": 1}}, "Zero": {"x": [], "y": 0}}));
        let mut a = body.object("A").unwrap().unwrap();
        let b = a.object("B").unwrap().unwrap();
        assert_eq!(b.done().unwrap_err().message(), "unknown field `A.B.C`");
        a.done().unwrap();
        body.done().unwrap();
    }

    #[test]
    fn names_match_without_regard_to_case_and_null_is_absent() {
        let mut body = fields(json!({"image": "a", "Cmd": null}));
        assert_eq!(body.string("Image").unwrap(), "a");
        assert_eq!(body.command("Cmd").unwrap(), None);
        body.done().unwrap();
    }

    #[test]
    fn wrong_types_and_words_name_the_field() {
        let mut body = fields(json!({"N": "x", "L": [1], "W": "never", "Big": 70000}));
        for (message, result) in [
            (
                "invalid `N`: expected a whole number, found a string",
                body.int::<i64>("N").map(drop),
            ),
            (
                "invalid `L[0]`: expected a string, found a number",
                body.strings("L").map(drop),
            ),
            (
                "invalid `W`: `never`: expected one of a, b",
                body.word("W", &[("a", 1), ("b", 2)]).map(drop),
            ),
            (
                "invalid `Big`: 70000 is out of range",
                body.int::<u16>("Big").map(drop),
            ),
        ] {
            assert_eq!(result.unwrap_err().message(), message);
        }
    }

    #[test]
    fn a_command_may_be_one_text() {
        let mut body = fields(json!({"Cmd": "ls -l", "Entrypoint": ["a", "b"]}));
        assert_eq!(body.command("Cmd").unwrap().unwrap(), ["ls -l"]);
        assert_eq!(body.command("Entrypoint").unwrap().unwrap(), ["a", "b"]);
    }

    #[test]
    fn unsupported_fields_are_refused_only_when_set() {
        let mut body = fields(json!({"Secrets": [], "Configs": [{"a": 1}]}));
        body.refuse(&[("Secrets", "no secrets")]).unwrap();
        assert_eq!(
            body.refuse(&[("Configs", "no configs yet")])
                .unwrap_err()
                .message(),
            "field `Configs` is not supported: no configs yet"
        );
    }
}
