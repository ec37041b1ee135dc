//! Membership: init, join, join-token, leave.

use crate::args::cluster::{InitArgs, JoinArgs, JoinTokenArgs, LeaveArgs, Role};
use crate::client::{Client, escaped};
use crate::commands::print;
use crate::error::{CliError, Result};
use crate::spec::parse;
use bollard::models::{SwarmInitRequest, SwarmJoinRequest, SwarmSpec};
use bollard::query_parameters::LeaveSwarmOptions;
use hyper::Method;
use serde_json::Value;
use std::collections::HashMap;

/// Labels of the cluster through which Docker's API carries what it has no field for.
const LABEL_MESH_POOL: &str = "shoal.mesh-pool";
const LABEL_KEY_ROTATION: &str = "shoal.key-rotation";

/// Port of the control channel when an address has none.
const CONTROL_PORT: u16 = 2377;

pub(crate) async fn init(client: &Client, args: InitArgs) -> Result<()> {
    let mut labels = HashMap::new();
    if let Some(pool) = args.mesh_pool {
        labels.insert(LABEL_MESH_POOL.to_owned(), pool);
    }
    if let Some(span) = args.key_rotation {
        parse::duration("--key-rotation", &span)?;
        labels.insert(LABEL_KEY_ROTATION.to_owned(), span);
    }
    let request = SwarmInitRequest {
        listen_addr: args.listen_addr,
        advertise_addr: args.advertise_addr,
        default_addr_pool: (!args.address_pools.is_empty()).then_some(args.address_pools),
        subnet_size: args.subnet_length.map(u32::from),
        spec: (!labels.is_empty()).then(|| SwarmSpec {
            labels: Some(labels),
            ..SwarmSpec::default()
        }),
        ..SwarmInitRequest::default()
    };
    let node = client.docker.init_swarm(request).await?;
    let node = node.trim().trim_matches('"').to_owned();
    print(&format!(
        "Swarm initialized: current node ({node}) is now a manager.\n\n"
    ))?;
    print("To add a worker to this swarm, run the following command:\n\n")?;
    print_join_command(client, Role::Worker).await?;
    print(
        "\nTo add a manager to this swarm, run 'shoal join-token manager' and follow the instructions.\n",
    )
}

pub(crate) async fn join(client: &Client, args: JoinArgs) -> Result<()> {
    let has_port = args.remote.parse::<std::net::SocketAddr>().is_ok()
        || (!args.remote.contains("]:") && args.remote.matches(':').count() == 1);
    let remote = if has_port {
        args.remote
    } else {
        format!("{}:{CONTROL_PORT}", args.remote)
    };
    let role = if args.token.split('-').count() >= 4 {
        "the swarm"
    } else {
        "a swarm"
    };
    let request = SwarmJoinRequest {
        listen_addr: args.listen_addr,
        advertise_addr: args.advertise_addr,
        remote_addrs: Some(vec![remote]),
        join_token: Some(args.token),
        ..SwarmJoinRequest::default()
    };
    client.docker.join_swarm(request).await?;
    let info = client.docker.info().await?;
    let manager = info
        .swarm
        .and_then(|swarm| swarm.control_available)
        .unwrap_or(false);
    let kind = if manager { "manager" } else { "worker" };
    print(&format!("This node joined {role} as a {kind}.\n"))
}

const fn role_word(role: Role) -> &'static str {
    match role {
        Role::Worker => "worker",
        Role::Manager => "manager",
    }
}

async fn token(client: &Client, role: Role) -> Result<String> {
    let tokens = client
        .docker
        .inspect_swarm()
        .await?
        .join_tokens
        .unwrap_or_default();
    let token = match role {
        Role::Worker => tokens.worker,
        Role::Manager => tokens.manager,
    };
    token.ok_or_else(|| CliError::Protocol("the answer has no token".to_owned()))
}

pub(crate) async fn join_token(client: &Client, args: JoinTokenArgs) -> Result<()> {
    if args.rotate {
        let mut path = format!("/tokens/rotate?role={}", role_word(args.role));
        if let Some(expires) = &args.expires {
            let seconds = parse::duration("--expires", expires)? / 1_000_000_000;
            path.push_str(&format!("&expires_s={seconds}"));
        }
        if let Some(uses) = args.uses {
            path.push_str(&format!("&uses={}", escaped(&uses.to_string())));
        }
        client.own::<Value>(Method::POST, &path).await?;
        if !args.quiet {
            print(&format!(
                "Successfully rotated {} join token.\n\n",
                role_word(args.role)
            ))?;
        }
    }
    if args.quiet {
        return print(&(token(client, args.role).await? + "\n"));
    }
    let role = role_word(args.role);
    print(&format!(
        "To add a {role} to this swarm, run the following command:\n\n"
    ))?;
    print_join_command(client, args.role).await?;
    print("\n")
}

async fn print_join_command(client: &Client, role: Role) -> Result<()> {
    let token = token(client, role).await?;
    let info = client.docker.info().await?;
    let swarm = info.swarm.unwrap_or_default();
    let own = swarm
        .remote_managers
        .unwrap_or_default()
        .into_iter()
        .find_map(|peer| peer.addr);
    let address = own.or(swarm.node_addr).unwrap_or_default();
    print(&format!("    shoal join --token {token} {address}\n"))
}

pub(crate) async fn leave(client: &Client, args: LeaveArgs) -> Result<()> {
    client
        .docker
        .leave_swarm(Some(LeaveSwarmOptions { force: args.force }))
        .await?;
    print("Node left the swarm.\n")
}
