//! One engine with a small image, removed with everything it has made.

use shoal_agent::EngineRuntime;
use shoal_engine::{EngineHandle, EngineOptions};
use shoal_model::spec::{ContainerSpec, OnPartition};
use shoal_model::{Meta, NodeId, ServiceId, Task, TaskId, TaskSpec, TaskState, TaskStatus};
use std::sync::Arc;

/// The engine's directories; whatever is left of its containers goes with them.
pub(crate) struct Site {
    dir: tempfile::TempDir,
    subnet: u8,
}

impl Site {
    /// An engine of its own, in the subnet 10.214.`subnet`.0/24.
    pub(crate) async fn new(subnet: u8) -> (Self, EngineHandle, EngineRuntime) {
        let dir = tempfile::tempdir().unwrap();
        let site = Self { dir, subnet };
        let engine = EngineHandle::start(site.options()).await.unwrap();
        let changes = ["CMD [\"sh\"]".to_owned(), "ENV PATH=/bin".to_owned()];
        let tar = std::io::Cursor::new(image());
        engine
            .image_import(tar, Some("busybox:latest"), &changes, "test")
            .await
            .unwrap();
        let runtime = EngineRuntime::new(engine.clone());
        (site, engine, runtime)
    }

    fn options(&self) -> EngineOptions {
        let (dir, exe) = (self.dir.path(), std::env::current_exe().unwrap());
        let mut options = EngineOptions::new(dir.join("data"), dir.join("run"), exe);
        options.instance = dir.to_string_lossy().into_owned();
        let name = dir.file_name().unwrap().to_string_lossy();
        options.cgroup_parent = format!("/shoal-test-{}", name.trim_start_matches('.'));
        options.bridge_address = Some(format!("10.214.{}.1/24", self.subnet));
        options
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let (options, data) = (self.options(), self.dir.path().join("data/containers"));
        let netns = self.dir.path().join("run/netns");
        let sweep = std::thread::spawn(move || {
            block_on(async {
                for entry in std::fs::read_dir(data).into_iter().flatten().flatten() {
                    let bundle = entry.path().join("bundle");
                    let found = shoal_runtime::ShimHandle::attach_existing(&bundle).await;
                    if let Ok(shoal_runtime::Existing::Alive(shim)) = found {
                        drop(shim.delete(true).await);
                    }
                }
                let tag = shoal_overlay_net::InstanceTag::derive(&options.instance);
                let net = shoal_overlay_net::LocalNet::open(tag).unwrap();
                for entry in std::fs::read_dir(netns).into_iter().flatten().flatten() {
                    drop(net.delete_netns(&entry.path()).await);
                }
                net.remove_everything().await.unwrap();
            });
            let group = options.cgroup_parent.trim_start_matches('/');
            let root = std::path::Path::new("/sys/fs/cgroup");
            drop(std::fs::remove_dir(root.join(group)));
            for hierarchy in std::fs::read_dir(root).into_iter().flatten().flatten() {
                drop(std::fs::remove_dir(hierarchy.path().join(group)));
            }
        });
        assert!(
            sweep.join().is_ok(),
            "a test's leavings could not be removed"
        );
    }
}

/// Runs a test's future on a runtime like the daemon's.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn image() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o755);
    header.set_size(busybox.len() as u64);
    builder
        .append_data(&mut header, "bin/busybox", &*busybox)
        .unwrap();
    for name in ["sh", "sleep", "tail", "touch", "cat"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        builder
            .append_link(&mut header, format!("bin/{name}"), "busybox")
            .unwrap();
    }
    builder.into_inner().unwrap()
}

/// A task that runs a program of the image.
pub(crate) fn task(args: &[&str], change: impl FnOnce(&mut TaskSpec)) -> Task {
    let mut spec = TaskSpec {
        container: ContainerSpec {
            image: "busybox".to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..ContainerSpec::default()
        },
        ..TaskSpec::default()
    };
    change(&mut spec);
    Task {
        id: TaskId::from_bits(7),
        meta: Meta::default(),
        service_id: ServiceId::from_bits(1),
        service_name: "web".to_owned(),
        slot: 1,
        node_id: Some(NodeId::from_bits(1)),
        spec: Arc::new(spec),
        spec_version: 1,
        ports: Vec::new(),
        on_partition: OnPartition::Keep,
        desired: TaskState::Running,
        status: TaskStatus::default(),
        volumes: Vec::new(),
        monitor_until: None,
        endpoints: Vec::new(),
        not_before: None,
    }
}
