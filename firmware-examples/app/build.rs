//! Bakes `firmware-examples/credentials.toml` into the firmware as constants.
//!
//! The device has no keyboard and no file system, so its network and gateway are compiled in. The file is a strict
//! subset of TOML (`key = "value"` lines and comments), read by hand so that a firmware build pulls in no parser.
//! Whatever is wrong with it ends the build with the file and the line. Without the file the example's values are
//! used, with a warning: a build server must be able to link, and such a firmware reaches nobody.
//! `HEADWATER_CREDENTIALS` names another file, for a test bench that builds for several networks.

#[path = "build/updates.rs"]
mod updates;

use std::path::{Path, PathBuf};
use std::time::SystemTime;
use std::{env, fs, process};

/// Every key, its longest value in bytes (the firmware's buffers are sized for it), whether it may be empty.
const KEYS: [(&str, usize, bool); 7] = [
    ("wifi_ssid", 32, false),
    ("wifi_password", 63, true),
    ("gateway", 128, false),
    ("gateway_user", 64, true),
    ("gateway_password", 64, true),
    ("gateway_tls", 256, true),
    ("device_id", 64, false),
];

fn main() {
    if env::var_os("CARGO_FEATURE_OTA").is_some() {
        updates::bake();
    }
    let file = choose_file();
    let text = fs::read_to_string(&file).unwrap_or_else(|e| fail(&file, 0, &format!("cannot be read: {e}")));
    let values = parse(&file, &text);
    let [ssid, wifi_password, gateway, user, gateway_password, tls, device_id] = &values;
    let (host, port) = split_gateway(&file, gateway);
    if !wifi_password.text.is_empty() && wifi_password.text.len() < 8 {
        fail(&file, wifi_password.line, "a WPA password has 8 to 63 characters; leave it empty for an open network");
    }
    if device_id.text.contains(['/', '+', '#']) {
        fail(&file, device_id.line, "the device id becomes a topic level and may hold none of / + #");
    }
    if user.text.is_empty() && !gateway_password.text.is_empty() {
        fail(&file, gateway_password.line, "a gateway_password needs a gateway_user");
    }

    let constants = format!(
        "pub const WIFI_SSID: &str = {:?};\npub const WIFI_PASSWORD: &str = {:?};\n\
         pub const GATEWAY_HOST: &str = {host:?};\npub const GATEWAY_PORT: u16 = {port};\n\
         pub const GATEWAY_USER: &str = {:?};\npub const GATEWAY_PASSWORD: &str = {:?};\n\
         pub const DEVICE_ID: &str = {:?};\npub const TOPIC: &str = {:?};\n",
        ssid.text,
        wifi_password.text,
        user.text,
        gateway_password.text,
        device_id.text,
        format!("devices/{}/telemetry", device_id.text),
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let constants =
        constants + &if env::var_os("CARGO_FEATURE_TLS").is_some() { bake_tls(&file, tls) } else { String::new() };
    fs::write(out.join("credentials.rs"), constants).expect("OUT_DIR is writable");
}

/// The PEM file that is named, relative to the file that names it. A build server that has none must be able to link.
fn bake_tls(file: &Path, named: &Value) -> String {
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let built = env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok()).unwrap_or(now);
    let pem = if named.text.is_empty() {
        println!("cargo:warning=no gateway_tls in {}: this firmware trusts no gateway", file.display());
        Vec::new()
    } else {
        let path = file.parent().unwrap_or(Path::new(".")).join(&named.text);
        println!("cargo:rerun-if-changed={}", path.display());
        match fs::read(&path) {
            Ok(pem) if pem.starts_with(b"-----BEGIN ") => pem,
            Ok(_) => {
                fail(file, named.line, &format!("{} is no PEM file: it does not begin with -----BEGIN", path.display()))
            }
            Err(e) => fail(file, named.line, &format!("{} cannot be read: {e}", path.display())),
        }
    };
    format!("pub const BUILT_UNIX_S: u64 = {built};\npub const GATEWAY_PEM: &[u8] = &{pem:?};\n")
}

fn choose_file() -> PathBuf {
    println!("cargo:rerun-if-env-changed=HEADWATER_CREDENTIALS");
    if let Some(named) = env::var_os("HEADWATER_CREDENTIALS") {
        let named = PathBuf::from(named);
        println!("cargo:rerun-if-changed={}", named.display());
        return named;
    }
    let folder = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("..");
    let own = folder.join("credentials.toml");
    let example = folder.join("credentials.example.toml");
    println!("cargo:rerun-if-changed={}", own.display());
    println!("cargo:rerun-if-changed={}", example.display());
    if own.exists() {
        return own;
    }
    println!(
        "cargo:warning=no firmware-examples/credentials.toml: this firmware has the example's network and gateway and \
         will connect to nothing. Copy credentials.example.toml to credentials.toml and fill it in."
    );
    example
}

struct Value {
    text: String,
    line: usize,
}

fn parse(file: &Path, text: &str) -> [Value; KEYS.len()] {
    let mut values: [Option<Value>; KEYS.len()] = [const { None }; KEYS.len()];
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, rest)) = line.split_once('=') else {
            fail(file, number, "expected key = \"value\"");
        };
        let key = key.trim();
        let Some(slot) = KEYS.iter().position(|(known, _, _)| *known == key) else {
            let known: Vec<_> = KEYS.iter().map(|(known, _, _)| *known).collect();
            fail(file, number, &format!("unknown key {key:?}; the keys are {}", known.join(", ")));
        };
        let value = unquote(rest.trim()).unwrap_or_else(|why| fail(file, number, why));
        let (_, bytes_max, may_be_empty) = KEYS[slot];
        if value.len() > bytes_max {
            fail(file, number, &format!("{key} is {} bytes long, at most {bytes_max} fit", value.len()));
        }
        if value.is_empty() && !may_be_empty {
            fail(file, number, &format!("{key} must not be empty"));
        }
        if values[slot].replace(Value { text: value, line: number }).is_some() {
            fail(file, number, &format!("{key} is given twice"));
        }
    }
    let mut slot = 0;
    values.map(|value| {
        let (key, _, may_be_empty) = KEYS[slot];
        slot += 1;
        match value {
            Some(value) => value,
            None if may_be_empty => Value { text: String::new(), line: 0 },
            None => fail(file, 0, &format!("{key} is missing; credentials.example.toml shows every key")),
        }
    })
}

/// What stands between the quotes, its two escapes undone. After the closing quote only a comment may follow.
fn unquote(text: &str) -> Result<String, &'static str> {
    let inner = text.strip_prefix('"').ok_or("the value must stand in double quotes")?;
    let mut value = String::new();
    let mut chars = inner.chars();
    loop {
        match chars.next().ok_or("the closing quote is missing")? {
            '"' => break,
            '\\' => match chars.next() {
                Some(c @ ('"' | '\\')) => value.push(c),
                _ => return Err("the only escapes are \\\" and \\\\"),
            },
            c => value.push(c),
        }
    }
    let rest = chars.as_str().trim();
    if rest.is_empty() || rest.starts_with('#') { Ok(value) } else { Err("something follows the closing quote") }
}

fn split_gateway<'a>(file: &Path, gateway: &'a Value) -> (&'a str, u16) {
    let parsed = gateway.text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    match parsed {
        Some((host, port)) if !host.is_empty() && port != 0 && !host.contains([':', '/', '@']) => (host, port),
        _ => fail(file, gateway.line, "gateway is host:port, for example \"192.168.1.10:1883\""),
    }
}

/// Ends the build. Line 0 stands for the file as a whole.
fn fail(file: &Path, line: usize, why: &str) -> ! {
    let file = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    match line {
        0 => eprintln!("error: {}: {why}", file.display()),
        line => eprintln!("error: {}:{line}: {why}", file.display()),
    }
    process::exit(1)
}
