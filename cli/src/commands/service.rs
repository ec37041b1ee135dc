//! `shoal service …`

use crate::args::ListArgs;
use crate::args::service::{
    CreateArgs, InspectArgs, LogsArgs, RollbackArgs, ScaleArgs, ServiceCommand, UpdateArgs,
};
use crate::client::{Client, escaped};
use crate::commands::{
    container, converge, filters, for_each, print, print_objects, registry, short_id, tasks,
    until_interrupted,
};
use crate::error::{CliError, Result};
use crate::render::list::{self, Column, ListStyle, Row};
use crate::spec;
use crate::spec::endpoint::NetworkIds;
use bollard::models::Service;
use bollard::query_parameters::{
    InspectNetworkOptions, InspectServiceOptions, ListServicesOptions, LogsOptions,
    UpdateServiceOptions,
};
use futures_util::StreamExt;
use hyper::Method;
use serde_json::json;

const COLUMNS: &[Column] = &[
    ("ID", "ID"),
    ("NAME", "Name"),
    ("MODE", "Mode"),
    ("REPLICAS", "Replicas"),
    ("IMAGE", "Image"),
    ("PORTS", "Ports"),
];

pub(crate) async fn dispatch(client: &Client, command: ServiceCommand) -> Result<()> {
    match command {
        ServiceCommand::Create(args) => create(client, *args).await,
        ServiceCommand::Ls(args) => ls(client, args).await,
        ServiceCommand::Ps(args) => {
            // The names are checked one by one, so that a wrong one is an error and not an empty table.
            for service in &args.services {
                inspect_one(client, service).await?;
            }
            let resolve = !args.no_resolve;
            tasks::print_tasks(client, "service", &args.services, &args.list, resolve).await
        }
        ServiceCommand::Inspect(args) => inspect(client, args).await,
        ServiceCommand::Scale(args) => scale(client, args).await,
        ServiceCommand::Update(args) => update(client, *args).await,
        ServiceCommand::Rollback(args) => rollback(client, args).await,
        ServiceCommand::Rm { services } => {
            for_each(&services, async |name| {
                client.docker.delete_service(name).await?;
                print(&format!("{name}\n"))
            })
            .await
        }
        ServiceCommand::Logs(args) => until_interrupted(logs(client, args)).await,
        ServiceCommand::Explain { service, json } => {
            let explanation = converge::explain(client, &service).await?;
            if json {
                let text = serde_json::to_string_pretty(&explanation);
                return print(&(text.map_err(|err| CliError::Protocol(err.to_string()))? + "\n"));
            }
            print(&converge::explanation_text(&explanation))
        }
        ServiceCommand::RebindVolume {
            service,
            slot,
            volume,
        } => {
            let (service_part, volume_part) = (escaped(&service), escaped(&volume));
            let path =
                format!("/services/{service_part}/rebind-volume?slot={slot}&name={volume_part}");
            client.own::<serde_json::Value>(Method::POST, &path).await?;
            print(&format!("{service}.{slot} gets a fresh volume {volume}\n"))
        }
    }
}

async fn inspect_one(client: &Client, name: &str) -> Result<Service> {
    Ok(client
        .docker
        .inspect_service(name, None::<InspectServiceOptions>)
        .await?)
}

async fn create(client: &Client, args: CreateArgs) -> Result<()> {
    let spec = spec::service::create(&args)?;
    let auth = match args.flags.with_registry_auth {
        true => registry::credentials(&args.image)?,
        false => None,
    };
    let answer = client.docker.create_service(spec, auth).await?;
    for warning in answer.warnings.unwrap_or_default() {
        eprintln!("{warning}");
    }
    let id = answer
        .id
        .ok_or_else(|| CliError::Protocol("a service without an id".to_owned()))?;
    print(&format!("{id}\n"))?;
    if args.flags.detach == Some(true) {
        return Ok(());
    }
    converge::wait(client, &id, args.flags.quiet).await
}

async fn ls(client: &Client, args: ListArgs) -> Result<()> {
    let options = ListServicesOptions {
        filters: filters(&args.filters)?,
        status: Some(true),
    };
    let mut services = client.docker.list_services(Some(options)).await?;
    services.sort_by_key(|service| service.spec.as_ref().and_then(|spec| spec.name.clone()));
    let rows: Vec<Row> = services
        .iter()
        .filter_map(|service| row(service, args.no_trunc).as_object().cloned())
        .collect();
    let style = ListStyle {
        format: args.format.as_deref(),
        quiet: args.quiet.then_some("ID"),
    };
    print(&list::render(&rows, COLUMNS, &[], &style)?)
}

fn row(service: &Service, no_trunc: bool) -> serde_json::Value {
    let id = service.id.clone().unwrap_or_default();
    let spec = service.spec.clone().unwrap_or_default();
    let global = spec.mode.as_ref().is_some_and(|mode| mode.global.is_some());
    let status = service.service_status.clone().unwrap_or_default();
    let task = spec.task_template.unwrap_or_default();
    let max = task
        .placement
        .and_then(|placement| placement.max_replicas)
        .unwrap_or(0);
    let mut replicas = format!(
        "{}/{}",
        status.running_tasks.unwrap_or(0),
        status.desired_tasks.unwrap_or(0)
    );
    if max > 0 {
        replicas.push_str(&format!(" (max {max} per node)"));
    }
    let image = task
        .container_spec
        .and_then(|container| container.image)
        .unwrap_or_default();
    // Those of the object have the numbers that were chosen.
    let ports = service
        .endpoint
        .as_ref()
        .and_then(|endpoint| endpoint.ports.clone())
        .unwrap_or_default();
    json!({
        "ID": if no_trunc { id } else { short_id(&id) },
        "Name": spec.name.unwrap_or_default(),
        "Mode": if global { "global" } else { "replicated" },
        "Replicas": replicas,
        "Image": tasks::without_digest(&image),
        "Ports": spec::endpoint::shown_ports(&ports),
    })
}

async fn inspect(client: &Client, args: InspectArgs) -> Result<()> {
    let mut services = Vec::new();
    for name in &args.services {
        services.push(inspect_one(client, name).await?);
    }
    if !args.pretty {
        return print_objects(&services, &args.format);
    }
    services
        .iter()
        .try_for_each(|service| print(&pretty(service)))
}

/// The short form for people.
fn pretty(service: &Service) -> String {
    let spec = service.spec.clone().unwrap_or_default();
    let task = spec.task_template.unwrap_or_default();
    let container = task.container_spec.unwrap_or_default();
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("{name}:\t{value}\n"));
        }
    };
    line("ID", service.id.clone().unwrap_or_default());
    line("Name", spec.name.unwrap_or_default());
    for (key, value) in spec.labels.unwrap_or_default() {
        line("Label", format!("{key}={value}"));
    }
    match spec.mode.and_then(|mode| mode.replicated) {
        Some(replicated) => {
            line("Service Mode", "Replicated".to_owned());
            line(" Replicas", replicated.replicas.unwrap_or(1).to_string());
        }
        None => line("Service Mode", "Global".to_owned()),
    }
    if let Some(update) = &service.update_status {
        line(
            "Update State",
            update
                .state
                .as_ref()
                .map(|s| s.to_string())
                .unwrap_or_default(),
        );
        line(" Message", update.message.clone().unwrap_or_default());
    }
    let constraints = task.placement.and_then(|placement| placement.constraints);
    line("Constraints", constraints.unwrap_or_default().join(", "));
    line("Image", container.image.unwrap_or_default());
    line("Args", container.args.unwrap_or_default().join(" "));
    line("Env", container.env.unwrap_or_default().join(" "));
    for mount in container.mounts.unwrap_or_default() {
        let source = mount.source.unwrap_or_default();
        line(
            "Mount",
            format!("{source} → {}", mount.target.unwrap_or_default()),
        );
    }
    for (name, value) in reached(service) {
        line(name, value);
    }
    text + "\n"
}

/// How the service is reached, for people.
fn reached(service: &Service) -> Vec<(&'static str, String)> {
    let spec = service.spec.clone().unwrap_or_default();
    let mut lines = Vec::new();
    let networks = spec.task_template.and_then(|task| task.networks);
    for network in networks.unwrap_or_default() {
        let aliases = network.aliases.unwrap_or_default();
        let aliases = if aliases.is_empty() {
            String::new()
        } else {
            format!(" as {}", aliases.join(", "))
        };
        lines.push(("Network", network.target.unwrap_or_default() + &aliases));
    }
    let endpoint = service.endpoint.clone().unwrap_or_default();
    let mode = endpoint.spec.and_then(|spec| spec.mode);
    let mode = mode.map(|mode| mode.to_string());
    lines.push(("Endpoint Mode", mode.unwrap_or_default()));
    for vip in endpoint.virtual_ips.unwrap_or_default() {
        lines.push(("Virtual Address", vip.addr.unwrap_or_default()));
    }
    for port in endpoint.ports.unwrap_or_default() {
        let mode = port.publish_mode.as_ref().map(|mode| mode.to_string());
        let mode = mode.unwrap_or_default();
        let (published, target) = (
            port.published_port.unwrap_or(0),
            port.target_port.unwrap_or(0),
        );
        let limits = spec::endpoint::shown_limits(&port, spec.labels.as_ref());
        lines.push(("Port", format!("{published} → {target} ({mode}){limits}")));
    }
    lines
}

async fn scale(client: &Client, args: ScaleArgs) -> Result<()> {
    let mut wanted = Vec::new();
    for text in &args.scales {
        let error = || {
            CliError::Usage(format!(
                "invalid scale specifier '{text}': expected SERVICE=REPLICAS"
            ))
        };
        let (name, replicas) = text.split_once('=').ok_or_else(error)?;
        wanted.push((
            name.to_owned(),
            replicas.parse::<u64>().map_err(|_| error())?,
        ));
    }
    for (name, replicas) in &wanted {
        let service = inspect_one(client, name).await?;
        let mut spec = service.spec.clone().unwrap_or_default();
        spec::service::scale(&mut spec, *replicas)?;
        send_update(client, name, &service, spec, (false, false)).await?;
        print(&format!("{name} scaled to {replicas}\n"))?;
    }
    if args.detach {
        return Ok(());
    }
    for (name, _) in &wanted {
        converge::wait(client, name, false).await?;
    }
    Ok(())
}

async fn send_update(
    client: &Client,
    name: &str,
    service: &Service,
    spec: bollard::models::ServiceSpec,
    (rollback, with_auth): (bool, bool),
) -> Result<()> {
    let image = spec
        .task_template
        .as_ref()
        .and_then(|task| task.container_spec.as_ref())
        .and_then(|container| container.image.clone());
    let auth = match image.filter(|_| with_auth) {
        Some(image) => registry::credentials(&image)?,
        None => None,
    };
    let version = service
        .version
        .as_ref()
        .and_then(|version| version.index)
        .unwrap_or(0);
    let options = UpdateServiceOptions {
        version: i32::try_from(version)
            .map_err(|_| CliError::Protocol(format!("version {version} is too large")))?,
        registry_auth_from: "spec".to_owned(),
        rollback: rollback.then(|| "previous".to_owned()),
    };
    let answer = client
        .docker
        .update_service(name, spec, options, auth)
        .await?;
    for warning in answer.warnings.unwrap_or_default() {
        eprintln!("{warning}");
    }
    Ok(())
}

async fn update(client: &Client, args: UpdateArgs) -> Result<()> {
    let service = inspect_one(client, &args.service).await?;
    let mut spec = service.spec.clone().unwrap_or_default();
    if !args.rollback {
        let ids = network_ids(client, &args).await?;
        spec::service::update(&mut spec, &args, &ids)?;
    }
    let with_auth = args.flags.with_registry_auth;
    let how = (args.rollback, with_auth);
    send_update(client, &args.service, &service, spec, how).await?;
    print(&format!("{}\n", args.service))?;
    if args.flags.detach == Some(true) {
        return Ok(());
    }
    converge::wait(client, &args.service, args.flags.quiet).await
}

/// The ids of the networks that an update names.
async fn network_ids(client: &Client, args: &UpdateArgs) -> Result<NetworkIds> {
    let mut ids = NetworkIds::new();
    for name in spec::endpoint::named_networks(args)? {
        let options = InspectNetworkOptions {
            verbose: false,
            scope: Some("swarm".to_owned()),
        };
        let network = client.docker.inspect_network(&name, Some(options)).await?;
        ids.insert(name, network.id.unwrap_or_default());
    }
    Ok(ids)
}

async fn rollback(client: &Client, args: RollbackArgs) -> Result<()> {
    let service = inspect_one(client, &args.service).await?;
    let spec = service.spec.clone().unwrap_or_default();
    send_update(client, &args.service, &service, spec, (true, false)).await?;
    print(&format!("{}\n", args.service))?;
    if args.detach {
        return Ok(());
    }
    converge::wait(client, &args.service, args.quiet).await
}

async fn logs(client: &Client, args: LogsArgs) -> Result<()> {
    let mut options: LogsOptions = container::log_options(&args.logs, None)?;
    // The task that wrote a line travels in the line's details.
    options.stdout = true;
    options.stderr = true;
    let labels = if args.raw {
        None
    } else {
        let resolve = !args.no_resolve;
        Some(tasks::task_labels(client, &args.service, args.no_trunc, resolve).await?)
    };
    let path = container::log_query(&args.logs, labels.is_some())?;
    let path = format!("/services/{}/logs?{path}", escaped(&args.service));
    let mut lines = container::multiplexed(client, &path).await?;
    while let Some(line) = lines.next().await {
        container::print_service_line(line?, labels.as_ref())?;
    }
    Ok(())
}
