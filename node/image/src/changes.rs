//! `--change` of an import: Dockerfile instructions that edit an image configuration.

use serde_json::{Map, Value, json};

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// An instruction that can't change a configuration.
    #[error("{instruction} is not a valid change command")]
    Instruction {
        /// The word.
        instruction: String,
    },
    /// An instruction without what it needs.
    #[error("change `{change}`: {reason}")]
    Argument {
        /// The whole change.
        change: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Applies changes, in order, to the `config` object of an image configuration.
pub(crate) fn apply_changes(
    config: &mut Map<String, Value>,
    changes: &[String],
) -> Result<(), ChangeError> {
    for change in changes {
        let change = change.trim();
        let (word, argument) = change
            .split_once(char::is_whitespace)
            .unwrap_or((change, ""));
        let argument = argument.trim();
        let bad = |reason| ChangeError::Argument {
            change: change.to_owned(),
            reason,
        };
        let needs_argument = || match argument {
            "" => Err(bad("needs an argument")),
            argument => Ok(argument),
        };
        match word.to_ascii_uppercase().as_str() {
            "CMD" => set(config, "Cmd", command(argument)),
            "ENTRYPOINT" => set(config, "Entrypoint", command(argument)),
            "USER" => set(config, "User", json!(needs_argument()?)),
            "WORKDIR" => {
                let old = config.get("WorkingDir").and_then(Value::as_str);
                let path = working_dir(old.unwrap_or("/"), needs_argument()?);
                set(config, "WorkingDir", json!(path));
            }
            "STOPSIGNAL" => set(config, "StopSignal", json!(needs_argument()?)),
            "ENV" => env(
                config,
                &pairs(needs_argument()?).ok_or_else(|| bad("needs NAME=VALUE"))?,
            ),
            "LABEL" => {
                let labels = object(config, "Labels");
                for (key, value) in
                    pairs(needs_argument()?).ok_or_else(|| bad("needs NAME=VALUE"))?
                {
                    labels.insert(key, json!(value));
                }
            }
            "EXPOSE" => {
                for port in words(needs_argument()?) {
                    let port =
                        port_name(&port).ok_or_else(|| bad("needs PORT or PORT/PROTOCOL"))?;
                    object(config, "ExposedPorts").insert(port, json!({}));
                }
            }
            "VOLUME" => {
                let paths = json_words(argument).unwrap_or_else(|| words(argument));
                if paths.is_empty() || paths.iter().any(String::is_empty) {
                    return Err(bad("needs a path"));
                }
                for path in paths {
                    object(config, "Volumes").insert(path, json!({}));
                }
            }
            "ONBUILD" => {
                let trigger = needs_argument()?;
                if let Value::Array(list) = config.entry("OnBuild").or_insert_with(|| json!([])) {
                    list.push(json!(trigger));
                }
            }
            _ => {
                return Err(ChangeError::Instruction {
                    instruction: word.to_owned(),
                });
            }
        }
    }
    Ok(())
}

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

fn object<'a>(config: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let entry = config.entry(key).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    match entry {
        Value::Object(map) => map,
        _ => unreachable!("it was made an object two lines above"),
    }
}

/// The exec form is a JSON list of strings; everything else is for the shell.
fn command(argument: &str) -> Value {
    match json_words(argument) {
        Some(words) => json!(words),
        None if argument.is_empty() => json!([]),
        None => json!(["/bin/sh", "-c", argument]),
    }
}

fn json_words(argument: &str) -> Option<Vec<String>> {
    argument
        .starts_with('[')
        .then(|| serde_json::from_str(argument).ok())?
}

fn working_dir(old: &str, new: &str) -> String {
    let joined = if new.starts_with('/') {
        new.to_owned()
    } else {
        format!("{old}/{new}")
    };
    let parts: Vec<&str> = joined
        .split('/')
        .filter(|p| !p.is_empty() && *p != ".")
        .collect();
    format!("/{}", parts.join("/"))
}

fn env(config: &mut Map<String, Value>, pairs: &[(String, String)]) {
    let entry = config.entry("Env").or_insert_with(|| json!([]));
    let old = entry.as_array().cloned().unwrap_or_default();
    let mut list: Vec<String> = old
        .iter()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect();
    for (name, value) in pairs {
        let prefix = format!("{name}=");
        let text = format!("{prefix}{value}");
        match list.iter_mut().find(|line| line.starts_with(&prefix)) {
            Some(line) => *line = text,
            None => list.push(text),
        }
    }
    *entry = json!(list);
}

fn port_name(text: &str) -> Option<String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let valid = ports
        .split('-')
        .all(|port| port.parse::<u16>().is_ok_and(|p| p > 0));
    (valid && matches!(protocol.as_str(), "tcp" | "udp" | "sctp"))
        .then(|| format!("{ports}/{protocol}"))
}

/// `A=1 B="two words"`, or the old form `A the rest`.
fn pairs(argument: &str) -> Option<Vec<(String, String)>> {
    let words = words(argument);
    if !words.first()?.contains('=') {
        let (name, value) = argument.split_once(char::is_whitespace)?;
        return Some(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: &String| {
        let (name, value) = word.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    words.iter().map(pair).collect()
}

/// Splits at blanks outside of quotes; a backslash takes the next character as it is.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut begun = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.extend(chars.next()),
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => (quote, begun) = (Some(c), true),
            (c, None) if c.is_whitespace() => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            (c, _) => word.push(c),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(changes: &[&str], expected: Value) {
        let mut config = Map::new();
        let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
        apply_changes(&mut config, &changes).unwrap();
        assert_eq!(Value::Object(config), expected);
    }

    #[test]
    fn instructions_change_the_configuration() {
        check(
            &[r#"CMD ["sh", "-c", "x"]"#],
            json!({"Cmd": ["sh", "-c", "x"]}),
        );
        check(
            &["cmd echo hi"],
            json!({"Cmd": ["/bin/sh", "-c", "echo hi"]}),
        );
        check(
            &["ENV A=1 B=\"two words\"", "ENV A=3"],
            json!({"Env": ["A=3", "B=two words"]}),
        );
        check(&["ENV A the rest"], json!({"Env": ["A=the rest"]}));
        check(
            &["WORKDIR /a", "WORKDIR b/./c"],
            json!({"WorkingDir": "/a/b/c"}),
        );
        check(
            &["EXPOSE 80 53/udp"],
            json!({"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        );
        check(
            &["VOLUME [\"/a\", \"/b\"]"],
            json!({"Volumes": {"/a": {}, "/b": {}}}),
        );
        check(
            &["LABEL a=b c='d e'"],
            json!({"Labels": {"a": "b", "c": "d e"}}),
        );
        check(
            &["USER 1:2", "STOPSIGNAL SIGINT"],
            json!({"User": "1:2", "StopSignal": "SIGINT"}),
        );
    }

    #[test]
    fn wrong_instructions_are_refused() {
        let refuse =
            |change: &str| apply_changes(&mut Map::new(), &[change.to_owned()]).unwrap_err();
        assert_eq!(
            refuse("RUN true").to_string(),
            "RUN is not a valid change command"
        );
        for change in [
            "ENV", "ENV =x", "EXPOSE x", "EXPOSE 0", "VOLUME", "LABEL a", "USER",
        ] {
            assert!(
                matches!(refuse(change), ChangeError::Argument { .. }),
                "{change}"
            );
        }
    }
}
