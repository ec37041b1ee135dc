//! Credentials for registries, where `docker` keeps them too: `~/.docker/config.json`.

use crate::args::image::{LoginArgs, LogoutArgs};
use crate::client::Client;
use crate::commands::print;
use crate::error::{CliError, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use hyper::Method;
use serde_json::{Map, Value, json};
use std::fs::OpenOptions;
use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What Docker's own registry is called in the file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";
/// What a helper says of a registry that it does not know.
const HELPER_KNOWS_NOTHING: &str = "credentials not found";

/// The file of the user's settings. What else is in it stays as it is.
struct ConfigFile {
    path: PathBuf,
    content: Map<String, Value>,
}

impl ConfigFile {
    fn load() -> Result<Self> {
        let dir = match std::env::var_os("DOCKER_CONFIG") {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".docker"),
        };
        let path = dir.join("config.json");
        let failed = || CliError::io(format!("read `{}`", path.display()));
        let content = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|err| failed()(err.into()))?,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(err) => return Err(failed()(err)),
        };
        Ok(Self { path, content })
    }

    /// Replaces the file; only its owner can read it.
    fn save(&self) -> Result<()> {
        let write = || {
            let dir = self.path.parent().unwrap_or(&self.path);
            std::fs::create_dir_all(dir)?;
            let temporary = self.path.with_extension("json.new");
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            serde_json::to_writer_pretty(&mut file, &self.content)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)
        };
        write().map_err(CliError::io(format!("write `{}`", self.path.display())))
    }

    fn auths(&mut self) -> Result<&mut Map<String, Value>> {
        let auths = self.content.entry("auths").or_insert_with(|| json!({}));
        let path = self.path.display();
        let text = format!("`auths` in `{path}` is no object: correct the file");
        auths.as_object_mut().ok_or(CliError::Usage(text))
    }

    /// The program that knows the credentials for `server`, if one is set.
    fn helper(&self, server: &str) -> Option<&str> {
        let own = self
            .content
            .get("credHelpers")
            .and_then(|all| all.get(server));
        own.or_else(|| self.content.get("credsStore"))?.as_str()
    }

    fn find(&self, server: &str) -> Result<Option<DockerCredentials>> {
        let given = |username: String, password: String| DockerCredentials {
            username: Some(username),
            password: Some(password),
            serveraddress: Some(server.to_owned()),
            ..DockerCredentials::default()
        };
        if let Some(helper) = self.helper(server) {
            return Ok(ask_helper(helper, server)?.map(|(user, secret)| given(user, secret)));
        }
        // Docker wrote the address as a URL in times past.
        let names = [
            server.to_owned(),
            format!("https://{server}"),
            format!("http://{server}"),
        ];
        let auths = self.content.get("auths");
        let entry = names.iter().find_map(|name| auths?.get(name));
        let Some(auth) = entry
            .and_then(|entry| entry.get("auth"))
            .and_then(Value::as_str)
        else {
            return Ok(None);
        };
        let decoded = STANDARD.decode(auth).ok();
        let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = text.as_deref().and_then(|text| text.split_once(':'));
        let (username, password) = pair.ok_or_else(|| {
            let path = self.path.display();
            let way_out = format!("log in again with `shoal login {server}`");
            CliError::Usage(format!(
                "the credentials for `{server}` in `{path}` are damaged: {way_out}"
            ))
        })?;
        Ok(Some(given(username.to_owned(), password.to_owned())))
    }
}

/// Asks `docker-credential-NAME`, a program that the user has named, for user and secret.
fn ask_helper(name: &str, server: &str) -> Result<Option<(String, String)>> {
    let program = format!("docker-credential-{name}");
    let failed = || CliError::io(format!("ask `{program}` for credentials"));
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed())?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(server.as_bytes()).map_err(failed())?;
    }
    let output = child.wait_with_output().map_err(failed())?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        if said.contains(HELPER_KNOWS_NOTHING) {
            return Ok(None);
        }
        return Err(failed()(std::io::Error::other(said.trim().to_owned())));
    }
    let answer: Value = serde_json::from_str(&said).map_err(|err| failed()(err.into()))?;
    let field = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    let (username, secret) = (field("Username"), field("Secret"));
    if username == "<token>" {
        let text = format!(
            "`{program}` has an identity token for `{server}`, which is not supported: log in with a password"
        );
        return Err(CliError::Usage(text));
    }
    Ok(Some((username, secret)))
}

/// As the file calls the registry of an image.
fn server_of(image: &str) -> String {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => {
            server_name(Some(host))
        }
        _ => DOCKER_HUB.to_owned(),
    }
}

fn server_name(given: Option<&str>) -> String {
    let bare = given.unwrap_or_default();
    let bare = bare.split_once("://").map_or(bare, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or_default() {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        host => host.to_owned(),
    }
}

/// The user's credentials for the registry of an image, if there are any.
pub(crate) fn credentials(image: &str) -> Result<Option<DockerCredentials>> {
    ConfigFile::load()?.find(&server_of(image))
}

fn read_line(prompt: &str) -> Result<String> {
    eprint!("{prompt}");
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    read.map_err(CliError::io("read standard input"))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn password(args: &LoginArgs) -> Result<String> {
    if let Some(password) = &args.password {
        eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        return Ok(password.clone());
    }
    if args.password_stdin {
        let mut text = String::new();
        let read = std::io::stdin().read_to_string(&mut text);
        read.map_err(CliError::io("read standard input"))?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    if !std::io::stdin().is_terminal() {
        let text = "cannot ask for a password without a terminal: use --password-stdin";
        return Err(CliError::Usage(text.to_owned()));
    }
    let _silent = Silence::begin()?;
    let password = read_line("Password: ")?;
    eprintln!();
    Ok(password)
}

/// The terminal does not show what is typed while this lives.
struct Silence(nix::sys::termios::Termios);

impl Silence {
    fn begin() -> Result<Self> {
        use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
        let failed = |errno: nix::errno::Errno| CliError::io("hide the password")(errno.into());
        let before = tcgetattr(std::io::stdin()).map_err(failed)?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &silent).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        use nix::sys::termios::{SetArg, tcsetattr};
        if let Err(errno) = tcsetattr(std::io::stdin(), SetArg::TCSANOW, &self.0) {
            eprintln!("shoal: failed to show again what is typed: {errno}");
        }
    }
}

pub(crate) async fn login(client: &Client, args: LoginArgs) -> Result<()> {
    let server = server_name(args.server.as_deref());
    let mut file = ConfigFile::load()?;
    if let Some(helper) = file.helper(&server) {
        let path = file.path.display();
        let text = format!(
            "`{path}` names the helper `docker-credential-{helper}` for `{server}`, which is only read here: log in with `docker login`"
        );
        return Err(CliError::Usage(text));
    }
    let username = match &args.username {
        Some(username) => username.clone(),
        None if args.password_stdin => {
            return Err(CliError::Usage(
                "--password-stdin needs --username".to_owned(),
            ));
        }
        None => read_line("Username: ")?,
    };
    let password = password(&args)?;
    let body = json!({ "username": username, "password": password, "serveraddress": server });
    client.docker_json(Method::POST, "/auth", &body).await?;
    let auth = STANDARD.encode(format!("{username}:{password}"));
    file.auths()?.insert(server, json!({ "auth": auth }));
    file.save()?;
    eprintln!(
        "WARNING! Your password is stored unencrypted in `{}`.",
        file.path.display()
    );
    print("Login Succeeded\n")
}

pub(crate) fn logout(args: LogoutArgs) -> Result<()> {
    let server = server_name(args.server.as_deref());
    let mut file = ConfigFile::load()?;
    if file.auths()?.remove(&server).is_none() {
        return print(&format!("Not logged in to {server}\n"));
    }
    file.save()?;
    print(&format!("Removing login credentials for {server}\n"))
}
