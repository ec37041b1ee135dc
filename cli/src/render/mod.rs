//! From values to text: tables, templates, sizes and times. Pure, so that golden tests can pin it.

pub(crate) mod human;
pub(crate) mod list;
pub(crate) mod template;
