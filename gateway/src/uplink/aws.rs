//! Endpoint, region and credentials as every AWS tool finds them: the sink's own keys first, then the environment, then
//! the shared configuration files; and the signature of requests.
//!
//! SigV4 and the credential sources come from reqsign, over our HTTP client; the role of a profile and the IoT credential
//! provider are ours.

use super::http::{Bounds, HttpClient};
use super::iot::IotProvider;
use super::tls::Trust;
use crate::problem::Problem;
use bytes::Bytes;
use http::request::Parts;
use http::uri::Uri;
use http::{HeaderValue, header};
use reqsign_aws_v4::{
    AssumeRoleCredentialProvider, AssumeRoleWithWebIdentityCredentialProvider, Credential, DefaultCredentialProvider,
    ECSCredentialProvider, EnvCredentialProvider, IMDSv2CredentialProvider, ProfileCredentialProvider, RequestSigner,
};
use reqsign_core::{
    CommandExecute, CommandOutput, Context, Error, FileRead, HttpSend, OsEnv, ProvideCredentialChain, Signer,
};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

/// A credential source answers within this time or is passed over.
const SOURCE_WITHIN: Duration = Duration::from_secs(5);
/// The metadata services are on the machine itself: what does not answer at once is not there.
const METADATA_WITHIN: Duration = Duration::from_secs(1);
const SOURCE_ANSWER_BYTES_MAX: usize = 256 << 10;
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The region where none is named, as signatures to something that is not AWS want one.
const REGION: &str = "us-east-1";
/// Name of our sessions in a role, unless a profile gives one.
const SESSION: &str = "headwater";

/// Where credentials come from.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "kebab-case")]
pub enum CredentialSource {
    /// As AWS tools look for them: environment, profile, SSO, web identity, process, container and instance metadata.
    #[default]
    Chain,
    /// The AWS IoT credential provider, with a device certificate: see the `iot` keys.
    Iot,
    /// Requests are not signed: for a Headwater that asks for no signature.
    None,
}

/// How to be somebody at AWS.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(deny_unknown_fields, default)]
pub struct IotConfig {
    /// The account's credential endpoint, as in `c2sakl5huz0afv.credentials.iot.eu-west-1.amazonaws.com`.
    pub endpoint: String,
    /// The role alias to ask for.
    pub role_alias: String,
    /// The thing's name, if the role's policy asks for it.
    pub thing: String,
    /// PEM file of the device's certificate.
    pub cert: PathBuf,
    /// PEM file of its key.
    pub key: PathBuf,
}

impl IotConfig {
    /// What has to be written, if credentials are to come from here.
    pub fn missing(&self, credentials: CredentialSource) -> Option<&'static str> {
        let said = !self.endpoint.is_empty()
            && !self.role_alias.is_empty()
            && !self.cert.as_os_str().is_empty()
            && !self.key.as_os_str().is_empty();
        (credentials == CredentialSource::Iot && !said)
            .then_some("credentials = \"iot\" needs iot = { endpoint, role_alias, cert, key }")
    }
}

/// A service of AWS: its name in signatures and host names, and the environment's variable for its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: &'static str,
    pub endpoint_variable: &'static str,
}

pub const KINESIS: Service = Service { name: "kinesis", endpoint_variable: "AWS_ENDPOINT_URL_KINESIS" };
pub const KINESIS_VIDEO: Service =
    Service { name: "kinesisvideo", endpoint_variable: "AWS_ENDPOINT_URL_KINESIS_VIDEO" };
pub const S3: Service = Service { name: "s3", endpoint_variable: "AWS_ENDPOINT_URL_S3" };

/// Keys of every `[[sink]]` that goes to a service of AWS.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(default)]
pub struct AwsConfig {
    /// Empty: from the environment or the profile, as AWS tools do.
    pub region: String,
    /// Only for something that is not AWS itself. Empty: from the environment or the profile, else AWS in the region.
    pub endpoint: String,
    /// Profile of the shared AWS configuration files.
    pub profile: String,
    /// "chain", "iot" or "none".
    pub credentials: CredentialSource,
    /// ARN of a role to assume.
    pub assume_role: String,
    /// External id that the role asks for.
    pub external_id: String,
    /// The AWS IoT credential provider.
    pub iot: IotConfig,
    /// PEM file of certificate authorities to trust instead of the system's.
    pub ca: Option<PathBuf>,
}

impl AwsConfig {
    pub(super) fn check(&self, key: &str, problems: &mut Vec<Problem>) {
        let mut problem = |of: &str, says: &str| problems.push(Problem::new(format!("{key}.{of}"), says));
        let http = |url: &str| url.starts_with("http://") || url.starts_with("https://");
        if !self.endpoint.is_empty() && (!http(&self.endpoint) || self.endpoint.parse::<Uri>().is_err()) {
            problem("endpoint", "write an address such as \"http://127.0.0.1:4567\", or leave it out for AWS itself");
        }
        if let Some(says) = self.iot.missing(self.credentials) {
            problem("iot", says);
        }
    }
}

/// Endpoint, region and signer of one sink.
#[derive(Debug)]
pub struct Aws {
    pub endpoint: String,
    pub region: String,
    /// It is AWS itself: nobody named another endpoint.
    pub is_public: bool,
    service: Service,
    config: AwsConfig,
    context: Context,
    signer: Option<std::sync::Mutex<Signer<Credential>>>,
}

impl Aws {
    /// Reads the environment and, if they have to say something, the shared configuration files.
    pub async fn find(service: Service, config: &AwsConfig, http: HttpClient) -> Self {
        let context = Context::new()
            .with_env(OsEnv)
            .with_file_read(Files)
            .with_http_send(Asking(http))
            .with_command_execute(Commands);
        let profile = profile_section(&context, &config.profile).await;
        let env = |names: &[&str]| names.iter().find_map(|name| context.env_var(name)).filter(|v| !v.is_empty());
        let own = |key: &str| Some(key.to_owned()).filter(|key| !key.is_empty());
        let endpoint = own(&config.endpoint)
            .or_else(|| env(&[service.endpoint_variable, "AWS_ENDPOINT_URL"]))
            .or_else(|| profile.get("endpoint_url").cloned());
        let region = own(&config.region)
            .or_else(|| env(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
            .or_else(|| profile.get("region").cloned())
            .unwrap_or_else(|| {
                if endpoint.is_none() {
                    tracing::warn!("no region is named: it is {REGION}; set `region`, or AWS_REGION");
                }
                REGION.to_owned()
            });
        let is_public = endpoint.is_none();
        let endpoint = endpoint.unwrap_or_else(|| public_endpoint(service, &region));
        let mut aws = Aws { endpoint, region, is_public, service, config: config.clone(), context, signer: None };
        aws.signer = aws.make_signer(&profile).map(std::sync::Mutex::new);
        aws
    }

    /// Signs a request head for the body whose SHA-256 stands in `x-amz-content-sha256`.
    pub async fn sign(&self, head: &mut Parts) -> Result<(), Error> {
        let Some(signer) = &self.signer else { return Ok(()) };
        let signer = signer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        signer.sign(head, None).await
    }

    pub fn signs(&self) -> bool {
        self.signer.is_some()
    }

    /// Looks for credentials anew: those in hand were refused, or were rotated.
    pub async fn forget_credentials(&self) {
        let Some(signer) = &self.signer else { return };
        let profile = profile_section(&self.context, &self.config.profile).await;
        if let Some(fresh) = self.make_signer(&profile) {
            *signer.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = fresh;
        }
    }

    fn make_signer(&self, profile: &HashMap<String, String>) -> Option<Signer<Credential>> {
        let config = &self.config;
        let requests = || RequestSigner::new(self.service.name, &self.region);
        let base = match (config.credentials, config.assume_role.is_empty()) {
            (CredentialSource::None, _) => return None,
            // No chain around it: a chain keeps to itself why a source gave nothing.
            (CredentialSource::Iot, true) => {
                return Some(Signer::new(self.context.clone(), IotProvider::new(&config.iot), requests()));
            }
            (CredentialSource::Iot, false) => ProvideCredentialChain::new().push(IotProvider::new(&config.iot)),
            (CredentialSource::Chain, true) => {
                return Some(Signer::new(self.context.clone(), self.chain(profile), requests()));
            }
            (CredentialSource::Chain, false) => self.chain(profile),
        };
        let role = self.role(&config.assume_role, &config.external_id, "", base);
        Some(Signer::new(self.context.clone(), role, requests()))
    }

    /// The usual chain; a profile that names a role is asked for that role first, unless the environment has keys.
    fn chain(&self, profile: &HashMap<String, String>) -> ProvideCredentialChain<Credential> {
        let name = &self.config.profile;
        let mut chain = ProvideCredentialChain::new();
        if name.is_empty() {
            chain = chain.push(EnvCredentialProvider::new());
        }
        let text = |key: &str| profile.get(key).map_or("", String::as_str);
        let role = profile.get("role_arn");
        if let (Some(arn), Some(token)) = (role, profile.get("web_identity_token_file")) {
            let provider = self.web_identity().with_role_arn(arn).with_web_identity_token_file(token);
            let session = Some(text("role_session_name")).filter(|session| !session.is_empty());
            chain = chain.push(provider.with_role_session_name(session.unwrap_or(SESSION).to_owned()));
        } else if let Some(arn) = role {
            let source = match text("credential_source") {
                "Environment" => ProvideCredentialChain::new().push(EnvCredentialProvider::new()),
                "Ec2InstanceMetadata" => ProvideCredentialChain::new().push(IMDSv2CredentialProvider::new()),
                "EcsContainer" => ProvideCredentialChain::new().push(ECSCredentialProvider::new()),
                _ => ProvideCredentialChain::new()
                    .push(ProfileCredentialProvider::new().with_profile(text("source_profile"))),
            };
            chain = chain.push(self.role(arn, text("external_id"), text("role_session_name"), source));
        }
        let mut rest = DefaultCredentialProvider::builder().web_identity(self.web_identity());
        if !name.is_empty() {
            rest = rest.with_profile(name).no_env();
        }
        chain.push(rest.build())
    }

    /// Role and token from the environment, unless they are named; the STS of our region, as AWS tools ask it.
    fn web_identity(&self) -> AssumeRoleWithWebIdentityCredentialProvider {
        AssumeRoleWithWebIdentityCredentialProvider::new().with_region(self.region.clone()).with_regional_sts_endpoint()
    }

    fn role(
        &self,
        arn: &str,
        external_id: &str,
        session: &str,
        source: ProvideCredentialChain<Credential>,
    ) -> AssumeRoleCredentialProvider {
        let sts = Signer::new(self.context.clone(), source, RequestSigner::new("sts", &self.region));
        let session = if session.is_empty() { SESSION } else { session };
        let role = AssumeRoleCredentialProvider::new(arn.to_owned(), sts)
            .with_region(self.region.clone())
            .with_regional_sts_endpoint()
            .with_role_session_name(session.to_owned());
        if external_id.is_empty() { role } else { role.with_external_id(external_id.to_owned()) }
    }
}

fn public_endpoint(service: Service, region: &str) -> String {
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://{}.{region}.{suffix}", service.name)
}

/// The keys of the profile in the shared configuration file; empty if there is none.
async fn profile_section(context: &Context, profile: &str) -> HashMap<String, String> {
    let profile = match profile {
        "" => context.env_var("AWS_PROFILE").unwrap_or_else(|| "default".to_owned()),
        named => named.to_owned(),
    };
    let path = context.env_var("AWS_CONFIG_FILE").unwrap_or_else(|| "~/.aws/config".to_owned());
    let Some(path) = context.expand_home_dir(&path) else { return HashMap::new() };
    match context.file_read(&path).await {
        Ok(text) => section(&String::from_utf8_lossy(&text), &profile),
        Err(_) => HashMap::new(),
    }
}

/// One section of an AWS configuration file.
fn section(text: &str, profile: &str) -> HashMap<String, String> {
    let (mut inside, mut keys) = (false, HashMap::new());
    for line in text.lines() {
        if let Some(title) = line.trim().strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            let title = title.trim();
            inside = title
                .strip_prefix("profile ")
                .map_or(title == "default" && profile == "default", |name| name.trim() == profile);
        } else if inside
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            keys.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    keys
}

/// The HTTP client as the credential sources use it.
#[derive(Debug)]
pub(super) struct Asking(pub HttpClient);

impl HttpSend for Asking {
    async fn http_send(&self, mut request: http::Request<Bytes>) -> reqsign_core::Result<http::Response<Bytes>> {
        if let Ok(elsewhere) = std::env::var("AWS_ENDPOINT_URL_STS") {
            redirect_sts(&mut request, &elsewhere)?;
        }
        let host = request.uri().host().unwrap_or_default();
        let is_local = host.starts_with("169.254.") || host.starts_with("[fd00:");
        let within = if is_local { METADATA_WITHIN } else { SOURCE_WITHIN };
        let bounds = Bounds { within, answer_bytes_max: SOURCE_ANSWER_BYTES_MAX };
        let answer = tokio::time::timeout(within, self.0.send(request, bounds)).await;
        let answer = answer.map_err(|_| Error::unexpected("no answer in time").set_retryable(true))?;
        answer.map_err(|error| Error::unexpected(error.to_string()).set_retryable(true))
    }
}

/// Sends a question for STS to another place, such as a VPC endpoint. It stays signed for, and addressed to, the host it was
/// made for.
fn redirect_sts(request: &mut http::Request<Bytes>, elsewhere: &str) -> reqsign_core::Result<()> {
    let Some(host) = request.uri().host().filter(|host| host.starts_with("sts.")) else { return Ok(()) };
    let wrong = || Error::config_invalid(format!("AWS_ENDPOINT_URL_STS is not an address: {elsewhere}"));
    let name = HeaderValue::from_str(host).map_err(|_| wrong())?;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let address = format!("{}{path}", elsewhere.trim_end_matches('/')).parse::<Uri>().map_err(|_| wrong())?;
    request.headers_mut().entry(header::HOST).or_insert(name);
    *request.uri_mut() = address;
    Ok(())
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> reqsign_core::Result<Vec<u8>> {
        let read = async {
            if tokio::fs::metadata(path).await?.len() > FILE_BYTES_MAX {
                return Err(std::io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
            }
            tokio::fs::read(path).await
        };
        read.await.map_err(|error| Error::unexpected(format!("{path}: {error}")))
    }
}

#[derive(Debug)]
struct Commands;

impl CommandExecute for Commands {
    async fn command_execute<'a>(
        &'a self,
        program: &'a str,
        args: &'a [&'a str],
    ) -> reqsign_core::Result<CommandOutput> {
        let mut command = tokio::process::Command::new(program);
        command.args(args).kill_on_drop(true).stdin(std::process::Stdio::null());
        let output = tokio::time::timeout(SOURCE_WITHIN * 6, command.output()).await;
        let output = output
            .map_err(|_| Error::unexpected(format!("{program} did not end in time")))?
            .map_err(|error| Error::unexpected(format!("{program}: {error}")))?;
        Ok(CommandOutput { status: output.status.code().unwrap_or(-1), stdout: output.stdout, stderr: output.stderr })
    }
}

/// Trust for AWS itself: a file named by the sink or by `AWS_CA_BUNDLE`, else the system's.
pub fn trust(ca: &Option<PathBuf>) -> Trust {
    Trust { ca: ca.clone().or_else(|| std::env::var_os("AWS_CA_BUNDLE").map(PathBuf::from)), client: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profiles_keys_are_found_and_no_others() {
        let text =
            "[default]\nregion = eu-west-1\n[profile a]\nrole_arn=arn:x\nsource_profile = b\n s3 =\n  x = 1\n# no\n";
        assert_eq!(section(text, "default")["region"], "eu-west-1");
        assert_eq!(section(text, "a")["role_arn"], "arn:x");
        assert_eq!(section(text, "a").len(), 2);
        assert!(section(text, "c").is_empty());
    }

    #[test]
    fn a_question_for_sts_goes_elsewhere_under_its_own_name() {
        let ask = |uri: &str| http::Request::get(uri).body(Bytes::new()).unwrap();
        let mut request = ask("https://sts.eu-west-1.amazonaws.com/?Action=AssumeRole&Version=2011-06-15");
        redirect_sts(&mut request, "http://127.0.0.1:9/").unwrap();
        assert_eq!(request.uri(), "http://127.0.0.1:9/?Action=AssumeRole&Version=2011-06-15");
        assert_eq!(request.headers()[header::HOST], "sts.eu-west-1.amazonaws.com");
        let mut other = ask("http://169.254.169.254/latest/api/token");
        redirect_sts(&mut other, "http://127.0.0.1:9/").unwrap();
        assert_eq!(other.uri(), "http://169.254.169.254/latest/api/token");
        assert!(redirect_sts(&mut ask("https://sts.amazonaws.com/"), "nowhere at all").is_err());
    }

    #[tokio::test]
    async fn the_sinks_own_keys_come_before_everything() {
        let config = AwsConfig {
            region: "eu-west-3".into(),
            endpoint: "http://127.0.0.1:1".into(),
            credentials: CredentialSource::None,
            ..Default::default()
        };
        let aws = Aws::find(KINESIS, &config, HttpClient::new(Trust::default())).await;
        assert_eq!((aws.endpoint.as_str(), aws.region.as_str()), ("http://127.0.0.1:1", "eu-west-3"));
        assert!(!aws.signs());
        assert_eq!(public_endpoint(KINESIS, "cn-north-1"), "https://kinesis.cn-north-1.amazonaws.com.cn");
        assert_eq!(public_endpoint(KINESIS_VIDEO, "eu-west-1"), "https://kinesisvideo.eu-west-1.amazonaws.com");
    }
}
