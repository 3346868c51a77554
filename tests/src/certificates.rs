//! Certificates that openssl makes for one test: an authority that is trusted, one that is not, and what they signed.

use crate::tools::run_ok;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const BOUND: Duration = Duration::from_secs(30);

/// The authorities `ca` and `stranger`, and a server's certificate for `localhost` signed by `ca`.
pub struct Certificates {
    home: TempDir,
}

impl Default for Certificates {
    fn default() -> Self {
        Certificates::new()
    }
}

impl Certificates {
    pub fn new() -> Certificates {
        let made = Certificates { home: tempfile::tempdir().expect("a temporary directory") };
        for authority in ["ca", "stranger"] {
            let (key, cert) = (made.key(authority), made.cert(authority));
            let subject = format!("/CN={authority}");
            made.openssl(
                &["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"],
                &["-keyout", &key, "-out", &cert, "-subj", &subject],
            );
        }
        made.sign("server", "ca", "subjectAltName=DNS:localhost,IP:127.0.0.1");
        made
    }

    /// A client's certificate.
    pub fn device(&self, name: &str, authority: &str) {
        self.sign(name, authority, "extendedKeyUsage=clientAuth");
    }

    /// A server's certificate for these alternative names, over after so many days.
    pub fn server(&self, name: &str, authority: &str, names: &str, days: i32) {
        self.sign_for(name, authority, &format!("subjectAltName={names}"), days);
    }

    /// An authority under another one.
    pub fn authority(&self, name: &str, authority: &str) {
        let extensions = "basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign";
        self.sign(name, authority, extensions);
    }

    /// One file of several certificates, the first one's key beside it.
    pub fn chain(&self, name: &str, of: &[&str]) {
        let read = |path: String| std::fs::read_to_string(path).expect("a certificate made before");
        let text: String = of.iter().map(|name| read(self.cert(name))).collect();
        std::fs::write(self.cert(name), text).expect("a file in a temporary directory");
        std::fs::write(self.key(name), read(self.key(of[0]))).expect("a file in a temporary directory");
    }

    /// What a device has: whom it trusts, its own certificate if it has one, and the key.
    pub fn device_pem(&self, authority: &str, device: Option<&str>) -> Vec<u8> {
        let mut files = vec![self.cert(authority)];
        files.extend(device.into_iter().flat_map(|device| [self.cert(device), self.key(device)]));
        files.iter().flat_map(|file| std::fs::read(file).expect("a file made before")).collect()
    }

    fn sign(&self, name: &str, authority: &str, extension: &str) {
        self.sign_for(name, authority, extension, 2);
    }

    fn sign_for(&self, name: &str, authority: &str, extension: &str, days: i32) {
        let (key, request, cert) = (self.key(name), self.file(&format!("{name}.csr")), self.cert(name));
        let subject = format!("/CN={name}");
        self.openssl(
            &["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"],
            &["-keyout", &key, "-out", &request, "-subj", &subject],
        );
        let extensions = self.file(&format!("{name}.ext"));
        std::fs::write(&extensions, extension).expect("a file in a temporary directory");
        let (ca, ca_key) = (self.cert(authority), self.key(authority));
        self.openssl(
            &["x509", "-req", "-days", &days.to_string(), "-CAcreateserial"],
            &["-in", &request, "-out", &cert, "-CA", &ca, "-CAkey", &ca_key, "-extfile", &extensions],
        );
    }

    fn openssl(&self, command: &[&str], files: &[&str]) {
        run_ok(Command::new("openssl").args(command).args(files), BOUND);
    }

    fn file(&self, name: &str) -> String {
        self.home.path().join(name).display().to_string()
    }

    pub fn key(&self, name: &str) -> String {
        self.file(&format!("{name}.key"))
    }

    pub fn cert(&self, name: &str) -> String {
        self.file(&format!("{name}.pem"))
    }
}
