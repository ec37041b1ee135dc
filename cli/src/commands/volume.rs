//! `shoal volume …`

use crate::args::ListArgs;
use crate::args::cluster::VolumeCommand;
use crate::client::Client;
use crate::commands::{filters, for_each, print, print_objects, tasks};
use crate::error::Result;
use crate::render::list::{self, Column, ListStyle, Row};
use crate::spec::parse;
use bollard::models::VolumeCreateRequest;
use bollard::query_parameters::{ListVolumesOptions, RemoveVolumeOptions};
use hyper::Method;
use serde_json::{Value, json};

const COLUMNS: &[Column] = &[("DRIVER", "Driver"), ("VOLUME NAME", "Name")];
const CLUSTER_COLUMNS: &[Column] = &[
    ("ID", "ID"),
    ("VOLUME NAME", "Name"),
    ("NODE", "Node"),
    ("DRIVER", "Driver"),
    ("BOUND SLOTS", "BoundSlots"),
];

pub(crate) async fn dispatch(client: &Client, command: VolumeCommand) -> Result<()> {
    match command {
        VolumeCommand::Create {
            driver,
            opts,
            labels,
            name,
        } => {
            let request = VolumeCreateRequest {
                name,
                driver: Some(driver),
                driver_opts: (!opts.is_empty()).then(|| parse::pairs(&opts)),
                labels: (!labels.is_empty()).then(|| parse::pairs(&labels)),
                cluster_volume_spec: None,
            };
            let volume = client.docker.create_volume(request).await?;
            print(&format!("{}\n", volume.name))
        }
        VolumeCommand::Ls {
            list,
            cluster: true,
        } => ls_cluster(client, list).await,
        VolumeCommand::Ls {
            list,
            cluster: false,
        } => ls(client, list).await,
        VolumeCommand::Inspect { format, volumes } => {
            let mut found = Vec::new();
            for name in &volumes {
                found.push(client.docker.inspect_volume(name).await?);
            }
            print_objects(&found, &format)
        }
        VolumeCommand::Rm { force, volumes } => {
            for_each(&volumes, async |name| {
                let options = RemoveVolumeOptions { force };
                client.docker.remove_volume(name, Some(options)).await?;
                print(&format!("{name}\n"))
            })
            .await
        }
    }
}

async fn ls(client: &Client, args: ListArgs) -> Result<()> {
    let options = ListVolumesOptions {
        filters: filters(&args.filters)?,
    };
    let mut volumes = client
        .docker
        .list_volumes(Some(options))
        .await?
        .volumes
        .unwrap_or_default();
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let rows: Vec<Row> = volumes
        .iter()
        .filter_map(|volume| {
            let row = json!({
                "Driver": volume.driver,
                "Name": volume.name,
                "Mountpoint": volume.mountpoint,
                "Scope": "local",
                "Labels": joined(&volume.labels),
            });
            row.as_object().cloned()
        })
        .collect();
    show(&rows, COLUMNS, &args)
}

fn joined(labels: &std::collections::HashMap<String, String>) -> String {
    let mut labels: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    labels.sort();
    labels.join(",")
}

fn show(rows: &[Row], columns: &[Column], args: &ListArgs) -> Result<()> {
    let style = ListStyle {
        format: args.format.as_deref(),
        quiet: args.quiet.then_some("Name"),
    };
    print(&list::render(rows, columns, &[], &style)?)
}

async fn ls_cluster(client: &Client, args: ListArgs) -> Result<()> {
    let volumes: Vec<Value> = client.own(Method::GET, "/volumes").await?;
    let nodes = tasks::node_names(client).await?;
    let text = |volume: &Value, field: &str| {
        volume
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let rows: Vec<Row> = volumes
        .iter()
        .filter_map(|volume| {
            let node = text(volume, "node_id");
            let bound = volume.get("bound_slots").and_then(Value::as_array);
            let row = json!({
                "ID": text(volume, "id"),
                "Name": text(volume, "name"),
                "Node": nodes.get(&node).cloned().unwrap_or(node),
                "Driver": text(volume, "driver"),
                "BoundSlots": bound.map_or(0, Vec::len),
            });
            row.as_object().cloned()
        })
        .collect();
    show(&rows, CLUSTER_COLUMNS, &args)
}
