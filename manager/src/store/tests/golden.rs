//! A snapshot of format 1 as it was committed. `SHOAL_UPDATE_GOLDEN=1` rewrites the file. Formats are frozen with the
//! first release: after it, do that for a new format version only, under a new name.

use super::fixture::{
    Log, attachment, bytes, copy_through_snapshot, create, create_task, desire, lease, network,
    report, task, with_network, with_port, with_volume,
};
use crate::store::snapshot::{self, ImportError, Importer};
use shoal_model::command::{Object, StoreAction};
use shoal_model::network::MeshAddress;
use shoal_model::{NodeId, TaskState};
use std::path::PathBuf;

fn sample() -> Log {
    let mut log = Log::with_nodes();
    log.ok(vec![
        create_task(with_volume(with_port(task(1, 1), 8080), "data")),
        create_task(task(2, 2)),
    ]);
    log.ok(vec![log.assign(1, 1)]);
    log.ok(vec![
        report(1, TaskState::Running),
        desire(2, TaskState::Shutdown),
    ]);
    log.ok(vec![
        create(Object::Network(Box::new(network(1, "backend")))),
        create(Object::Lease(Box::new(lease(
            1,
            1,
            &["10.1.0.0/28", "10.1.0.31/32"],
        )))),
        create(Object::Attachment(Box::new(attachment(
            5,
            1,
            &[(1, "10.1.0.31")],
        )))),
        create_task(with_network(task(3, 3), 1)),
        StoreAction::SetNodeMesh {
            node_id: NodeId::from_bits(1),
            mesh: MeshAddress {
                ipv4: [10, 255, 0, 1].into(),
                ipv6: 1.into(),
            },
        },
    ]);
    log.ok(vec![log.assign_at(3, 1, &[(1, "10.1.0.2")])]);
    log
}

/// Each page as a line of hexadecimal digits.
fn to_text(pages: impl Iterator<Item = Vec<u8>>) -> String {
    pages.map(|page| hex::encode(page) + "\n").collect()
}

#[test]
fn snapshots_of_format_1_are_read_and_written_byte_by_byte() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/store/tests/snapshot-v1.hex");
    let written = to_text(snapshot::export(&sample().state).map(Result::unwrap));
    if std::env::var_os("SHOAL_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap();
    assert_eq!(written, committed);
    let mut importer = Importer::new();
    for line in committed.lines() {
        importer.push(&hex::decode(line).unwrap()).unwrap();
    }
    assert_eq!(importer.finish().unwrap(), sample().state);
}

#[test]
fn a_copy_through_a_snapshot_is_equal() {
    let state = sample().state;
    let copy = copy_through_snapshot(&state);
    assert_eq!(copy, state);
    assert_eq!(bytes(&copy), bytes(&state));
}

#[test]
fn missing_repeated_and_foreign_pages_are_refused() {
    let pages: Vec<_> = snapshot::export(&sample().state)
        .map(Result::unwrap)
        .collect();
    let [header, objects, end] = &pages[..] else {
        panic!("{} pages", pages.len());
    };
    let read = |pages: &[&[u8]]| {
        let mut importer = Importer::new();
        pages.iter().try_for_each(|page| importer.push(page))?;
        importer.finish()
    };
    assert!(read(&[header, objects, end]).is_ok());
    assert!(matches!(
        read(&[header, objects]),
        Err(ImportError::Truncated { expected: None, .. })
    ));
    assert!(matches!(
        read(&[header, end]),
        Err(ImportError::Truncated { found: 0, .. })
    ));
    assert!(matches!(
        read(&[objects]),
        Err(ImportError::OutOfOrder { page: 0 })
    ));
    assert!(matches!(
        read(&[header, header]),
        Err(ImportError::OutOfOrder { page: 1 })
    ));
    assert!(matches!(
        read(&[header, objects, objects]),
        Err(ImportError::Twice { .. })
    ));
    assert!(matches!(
        read(&[header, objects, end, end]),
        Err(ImportError::OutOfOrder { page: 3 })
    ));
    let torn = &objects[..objects.len() / 2];
    assert!(matches!(
        read(&[header, torn]),
        Err(ImportError::Decode { page: 1, .. })
    ));
    assert!(read(&[]).is_err());
}
