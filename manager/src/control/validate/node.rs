//! Node specs.

use super::{Invalid, ensure, labels};
use crate::store::bounds::{NODE_SPEC_BYTES_MAX, node_spec_bytes};
use shoal_model::NodeSpec;

/// Most characters of a node's name.
const NODE_NAME_CHARS_MAX: usize = 255;

/// Checks what a user wants of a node.
///
/// # Errors
/// [`Invalid`] with the first field that is wrong.
pub fn node(spec: &NodeSpec) -> Result<(), Invalid> {
    let name = &spec.name;
    let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
    ensure(
        printable && name.len() <= NODE_NAME_CHARS_MAX,
        "Name",
        || {
            format!(
                "`{}` is not a node name: use at most {NODE_NAME_CHARS_MAX} printable characters without spaces",
                name.escape_debug()
            )
        },
    )?;
    labels("Labels", &spec.labels)?;
    let bytes = node_spec_bytes(spec).unwrap_or(usize::MAX);
    ensure(bytes <= NODE_SPEC_BYTES_MAX, "Labels", || {
        format!("the node's spec has {bytes} bytes: at most {NODE_SPEC_BYTES_MAX} are stored")
    })
}
