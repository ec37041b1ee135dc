//! Commands on images.

use super::ListArgs;
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// User name; asked for when absent
    #[arg(short, long)]
    pub(crate) username: Option<String>,
    /// Password; asked for when absent. Others on this machine can see it: prefer --password-stdin
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub(crate) password: Option<String>,
    /// Take the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// HOST[:PORT]; Docker's registry when absent
    pub(crate) server: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// HOST[:PORT]; Docker's registry when absent
    pub(crate) server: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// No progress display
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Platform of a multi-platform image: linux/arm64
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// NAME[:TAG|@DIGEST]
    pub(crate) image: String,
}

#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    #[command(flatten)]
    pub(crate) list: ListArgs,
    /// Intermediate images too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Show digests
    #[arg(long)]
    pub(crate) digests: bool,
    /// Only this repository
    pub(crate) repository: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Also images that stopped containers use
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Name or id
    pub(crate) source: String,
    /// NAME[:TAG]
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The archive; standard input when absent
    #[arg(short, long)]
    pub(crate) input: Option<PathBuf>,
    /// No progress display
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Dockerfile instruction: 'CMD ["/bin/sh"]'
    #[arg(short, long = "change")]
    pub(crate) changes: Vec<String>,
    /// Message in the image's history
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
    /// The archive; `-` for standard input
    pub(crate) file: PathBuf,
    /// NAME[:TAG]
    pub(crate) reference: Option<String>,
}
