//! Tests of the certificate authority.

use super::role_of_secret;
use shoal_model::cluster::{JoinSecret, Redacted, RootCa};
use shoal_model::rpc::ErrorCode;
use shoal_model::{Cluster, ClusterId, ClusterSpec, Meta, NodeRole, Timestamp};

fn cluster(expires_at: Option<Timestamp>, uses_left: Option<u64>) -> Cluster {
    let secret = |text: &str| JoinSecret {
        secret: Redacted(text.to_owned()),
        expires_at,
        uses_left,
    };
    Cluster {
        id: ClusterId::from_bits(1),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        root_ca: RootCa {
            certificate_der: Vec::new(),
            key_der: Redacted(Vec::new()),
        },
        worker_secret: secret("w"),
        manager_secret: secret("m"),
        last_raft_id: 1,
    }
}

fn check(cluster: &Cluster, secret: &str, expected: Result<NodeRole, &str>) {
    let found = role_of_secret(cluster, &Redacted(secret.to_owned()), Timestamp(10));
    match (found, expected) {
        (Ok(found), Ok(role)) => assert_eq!(found, role),
        (Err(failure), Err(text)) => {
            assert_eq!(failure.error.code, ErrorCode::PermissionDenied);
            assert!(failure.error.message.contains(text), "{}", failure.error);
        }
        (found, expected) => panic!("{found:?} instead of {expected:?}"),
    }
}

#[test]
fn a_token_gives_its_own_role_while_it_is_good() {
    check(&cluster(None, None), "w", Ok(NodeRole::Worker));
    check(&cluster(None, Some(1)), "m", Ok(NodeRole::Manager));
    check(
        &cluster(Some(Timestamp(10)), None),
        "w",
        Ok(NodeRole::Worker),
    );
    check(
        &cluster(Some(Timestamp(9)), None),
        "w",
        Err("it has expired"),
    );
    check(&cluster(None, Some(0)), "m", Err("it is used up"));
    check(
        &cluster(None, None),
        "x",
        Err("not a token of this cluster"),
    );
    check(&cluster(None, None), "", Err("not a token of this cluster"));
}
