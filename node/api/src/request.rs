//! What handlers take from a request: parameters, filters, a bounded JSON body.

use crate::error::{ApiError, ApiResult};
use crate::fields::Fields;
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::StatusCode;
use http::request::Parts;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use shoal_model::Timestamp;
use std::collections::BTreeMap;

/// Largest JSON body in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Docker's filters: key to accepted values.
pub(crate) type Filters = BTreeMap<String, Vec<String>>;

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params(Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> ApiResult<Self> {
        let query = parts.uri.query().unwrap_or_default();
        if query.is_empty() {
            return Ok(Self::default());
        }
        axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&parts.uri)
            .map(|query| Self(query.0))
            .map_err(|err| ApiError::bad_request(format!("malformed query: {err}")))
    }
}

impl Params {
    /// A parameter that is there and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// All values of a parameter that may be repeated.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let matches = self.0.iter().filter(|(key, _)| key == name);
        matches.map(|(_, value)| value.as_str()).collect()
    }

    /// A text; absent: empty.
    pub(crate) fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    /// A switch as Docker reads it: everything but `0`, `no`, `false`, `none` and nothing is on.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| {
            !matches!(
                value.trim().to_ascii_lowercase().as_str(),
                "" | "0" | "no" | "false" | "none"
            )
        })
    }

    /// A switch that is on unless it is switched off.
    pub(crate) fn flag_or(&self, name: &str, default: bool) -> bool {
        match self.get(name) {
            None => default,
            Some(_) => self.flag(name),
        }
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> ApiResult<Option<T>> {
        self.get(name)
            .map(|text| {
                text.parse()
                    .map_err(|_| ApiError::field(name, format!("`{text}` is not a valid number")))
            })
            .transpose()
    }

    /// A point in time.
    pub(crate) fn time(&self, name: &str) -> ApiResult<Option<Timestamp>> {
        let text = self.get(name).unwrap_or_default();
        crate::time::parse_time(name, text, crate::time::now())
    }

    /// The filters, in the new form `{"k":["v"]}` or the old one `{"k":{"v":true}}`. A key outside `known` is refused.
    pub(crate) fn filters(&self, known: &[&str]) -> ApiResult<Filters> {
        let Some(text) = self.get("filters") else {
            return Ok(Filters::new());
        };
        let filters = parse_filters(text)?;
        match filters.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(ApiError::bad_request(format!("invalid filter '{key}'"))),
            None => Ok(filters),
        }
    }
}

fn parse_filters(text: &str) -> ApiResult<Filters> {
    let refuse = || ApiError::bad_request(format!("invalid filter: `{text}`"));
    let Ok(Value::Object(map)) = serde_json::from_str(text) else {
        return Err(refuse());
    };
    map.into_iter()
        .map(|(key, values)| {
            let values = match values {
                Value::Array(items) => items
                    .into_iter()
                    .map(|item| match item {
                        Value::String(text) => Ok(text),
                        _ => Err(refuse()),
                    })
                    .collect::<ApiResult<_>>()?,
                Value::Object(set) => set
                    .into_iter()
                    .filter(|(_, on)| on.as_bool().unwrap_or(false))
                    .map(|(value, _)| value)
                    .collect(),
                _ => return Err(refuse()),
            };
            Ok((key, values))
        })
        .collect()
}

/// A JSON body of at most [`BODY_BYTES_MAX`], ready to be read field by field. An empty body has no fields.
#[derive(Debug)]
pub(crate) struct JsonBody(pub(crate) Fields);

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> ApiResult<Self> {
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX);
        let bytes = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(err) if err.downcast_ref::<LengthLimitError>().is_some() => {
                return Err(ApiError::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the request body is larger than {BODY_BYTES_MAX} bytes"),
                ));
            }
            Err(err) => {
                return Err(ApiError::bad_request(format!(
                    "failed to read the request body: {err}"
                )));
            }
        };
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Fields::of(Value::Null).map(Self);
        }
        let value = serde_json::from_slice(&bytes)
            .map_err(|err| ApiError::bad_request(format!("invalid JSON: {err}")))?;
        Fields::of(value).map(Self)
    }
}

/// Whether labels satisfy Docker's label filters: each `key` or `key=value` must hold.
pub(crate) fn labels_match(
    labels: &BTreeMap<String, String>,
    wanted: Option<&Vec<String>>,
) -> bool {
    wanted
        .into_iter()
        .flatten()
        .all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        })
}

/// Whether a value passes a filter: no filter, or one of its values is accepted by `accepts`.
pub(crate) fn passes(filters: &Filters, key: &str, mut accepts: impl FnMut(&str) -> bool) -> bool {
    match filters.get(key) {
        Some(values) if !values.is_empty() => values.iter().any(|value| accepts(value)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_filters_are_read() {
        for text in [
            r#"{"name":["a","b"]}"#,
            r#"{"name":{"a":true,"b":true,"c":false}}"#,
        ] {
            let params = Params(vec![("filters".into(), text.into())]);
            let filters = params.filters(&["name"]).unwrap();
            assert_eq!(filters["name"], ["a", "b"]);
        }
        for text in [
            "[]",
            "x",
            r#"{"name":[1]}"#,
            r#"{"name":"a"}"#,
            r#"{"other":["a"]}"#,
        ] {
            let params = Params(vec![("filters".into(), text.into())]);
            assert!(params.filters(&["name"]).is_err(), "{text}");
        }
    }

    #[test]
    fn switches_are_read_as_docker_reads_them() {
        for (text, on) in [
            ("1", true),
            ("true", true),
            ("0", false),
            ("False", false),
            ("", false),
        ] {
            let params = Params(vec![("all".into(), text.into())]);
            assert_eq!(params.flag("all"), on, "{text}");
        }
    }
}
