//! Lists: a table by default, a template or JSON with `--format`, bare ids with `--quiet`.

use super::template::Format;
use crate::error::Result;
use serde_json::{Map, Value};

/// A row: fields under the names that templates use.
pub(crate) type Row = Map<String, Value>;

/// A column of the default table: header and field.
pub(crate) type Column = (&'static str, &'static str);

/// How a list is shown.
#[derive(Debug, Default)]
pub(crate) struct ListStyle<'a> {
    /// `--format`: `table`, `table TEMPLATE`, `json`, TEMPLATE.
    pub(crate) format: Option<&'a str>,
    /// `--quiet`: only this field.
    pub(crate) quiet: Option<&'static str>,
}

/// Renders `rows`. `headers` names all fields, for `table TEMPLATE`; `columns` are those of the default table.
pub(crate) fn render(
    rows: &[Row],
    columns: &[Column],
    headers: &[Column],
    style: &ListStyle<'_>,
) -> Result<String> {
    if let (Some(field), None) = (style.quiet, style.format) {
        return Ok(rows
            .iter()
            .fold(String::new(), |out, row| out + &text(row, field) + "\n"));
    }
    match style.format {
        None | Some("table") => Ok(table(rows, columns)),
        Some("json") => lines(rows, "{{json .}}"),
        Some(format) => match format.strip_prefix("table ") {
            Some(template) => table_of_template(rows, template, columns, headers),
            None => lines(rows, format),
        },
    }
}

fn text(row: &Row, field: &str) -> String {
    match row.get(field) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

fn lines(rows: &[Row], template: &str) -> Result<String> {
    let format = Format::parse(template)?;
    rows.iter().try_fold(String::new(), |out, row| {
        Ok(out + &format.render(&Value::Object(row.clone()))? + "\n")
    })
}

fn table(rows: &[Row], columns: &[Column]) -> String {
    let head = columns
        .iter()
        .map(|(header, _)| (*header).to_owned())
        .collect();
    let body = rows
        .iter()
        .map(|row| columns.iter().map(|(_, field)| text(row, field)).collect());
    aligned(std::iter::once(head).chain(body).collect())
}

/// The header of each field stands where its value will be, so the template is rendered once with the headers.
fn table_of_template(
    rows: &[Row],
    template: &str,
    columns: &[Column],
    headers: &[Column],
) -> Result<String> {
    let head: Row = columns
        .iter()
        .chain(headers)
        .map(|(header, field)| ((*field).to_owned(), Value::from(*header)))
        .collect();
    let format = Format::parse(template)?;
    let cells = std::iter::once(&head)
        .chain(rows)
        .map(|row| {
            let line = format.render(&Value::Object(row.clone()))?;
            Ok(line.split('\t').map(str::to_owned).collect())
        })
        .collect::<Result<Vec<Vec<String>>>>()?;
    Ok(aligned(cells))
}

/// Columns padded to their widest cell and three spaces; the last one is not padded.
fn aligned(cells: Vec<Vec<String>>) -> String {
    let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        cells
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in &cells {
        for (column, cell) in row.iter().enumerate() {
            let last = column + 1 == row.len();
            let pad = if last {
                0
            } else {
                widths[column] + 3 - cell.chars().count()
            };
            out.push_str(cell);
            out.push_str(&" ".repeat(pad));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: &[Column] = &[("ID", "ID"), ("NAME", "Name")];

    fn rows() -> Vec<Row> {
        let row =
            |id: &str, name: &str| json!({"ID": id, "Name": name}).as_object().unwrap().clone();
        vec![row("abc", "web"), row("de", "database")]
    }

    fn check(format: Option<&str>, quiet: Option<&'static str>, expected: &str) {
        let style = ListStyle { format, quiet };
        assert_eq!(render(&rows(), COLUMNS, &[], &style).unwrap(), expected);
    }

    #[test]
    fn lists_have_dockers_shapes() {
        check(None, None, "ID    NAME\nabc   web\nde    database\n");
        check(None, Some("ID"), "abc\nde\n");
        check(Some("{{.Name}}"), None, "web\ndatabase\n");
        check(
            Some("table {{.Name}}\\t{{.ID}}"),
            None,
            "NAME       ID\nweb        abc\ndatabase   de\n",
        );
        check(
            Some("json"),
            None,
            "{\"ID\":\"abc\",\"Name\":\"web\"}\n{\"ID\":\"de\",\"Name\":\"database\"}\n",
        );
    }
}
