//! Motion JPEG: a camera publishes pictures over MQTT, and each comes out as it went in, by its URL, by GetImages, and on the player
//! page.

use headwater_tests::gateway::Gateway;
use headwater_tests::mqtt::{Client, Version};
use headwater_tests::need;
use headwater_tests::tools::{self, program, python, run, run_ok};
use headwater_tests::video::{self, NO_FFMPEG, fragments};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(60);
/// Pictures of one colour, which JPEG keeps.
const COLOURS: [&str; 4] = ["c02020", "20a040", "2040c0", "d0d0d0"];

/// JPEGs by ffmpeg, of what a filter of its makes.
fn jpegs(home: &Path, filter: &str, count: u32) -> Vec<Vec<u8>> {
    let mut ffmpeg = video::ffmpeg().unwrap();
    ffmpeg.args(["-f", "lavfi", "-i", filter, "-frames:v", &count.to_string(), "-pix_fmt", "yuvj420p", "-q:v", "3"]);
    run_ok(ffmpeg.arg(home.join("%d.jpg")), BOUND);
    (1..=count).map(|at| std::fs::read(home.join(format!("{at}.jpg"))).unwrap()).collect()
}

fn fetch(home: &Path, url: &str) -> Vec<u8> {
    let to = home.join("fetched");
    run_ok(Command::new(program("curl").unwrap()).args(["-sSf", "-o"]).arg(&to).arg(url), BOUND);
    std::fs::read(to).unwrap()
}

/// The pixels of a picture, as ffmpeg decodes it.
fn pixels(home: &Path, picture: &[u8]) -> Vec<u8> {
    let path = home.join("picture");
    std::fs::write(&path, picture).unwrap();
    let mut ffmpeg = video::ffmpeg().unwrap();
    ffmpeg.arg("-i").arg(path).args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]);
    run(&mut ffmpeg, BOUND).stdout
}

#[test]
fn each_picture_comes_out_as_it_went_in() {
    need!(video::ffmpeg(), NO_FFMPEG);
    need!(program("curl"), "curl is not installed");
    let home = tempfile::tempdir().unwrap();
    let sent = jpegs(home.path(), "testsrc2=size=320x240:rate=1", 4);
    let gateway = Gateway::plain();
    let mut camera = Client::connect(gateway.mqtt, "gauge", Version::V5).unwrap();
    for (number, picture) in sent.iter().enumerate() {
        assert_eq!(camera.publish(&format!("video/gauge/{number}"), picture).unwrap(), 0);
        std::thread::sleep(Duration::from_millis(400));
    }
    let kept = fragments(gateway.api, "gauge");
    assert_eq!(kept.len(), 4, "{kept:?}");
    let image = format!("http://{}/video/gauge/image.jpg", gateway.console);
    assert!(fetch(home.path(), &image) == sent[3], "the newest picture is another");
    for ((_, at, _), sent) in kept.iter().zip(&sent) {
        assert!(fetch(home.path(), &format!("{image}?at={at}")) == *sent, "another picture at {at}");
    }
    // Another size is made by a decoder, of the same picture.
    let small = fetch(home.path(), &format!("{image}?at={}&width=160", kept[1].1));
    let mean = |pixels: &[u8]| pixels.iter().map(|value| u64::from(*value)).sum::<u64>() / pixels.len() as u64;
    let (small, large) = (pixels(home.path(), &small), pixels(home.path(), &sent[1]));
    assert_eq!((small.len(), large.len()), (160 * 120 * 3, 320 * 240 * 3));
    assert!(mean(&small).abs_diff(mean(&large)) <= 2, "{} {}", mean(&small), mean(&large));

    let python = need!(python(), "the packages of tests/clients/requirements.txt are not installed");
    let program = "import boto3,sys\n\
        c=boto3.client('kinesis-video-archived-media',endpoint_url=sys.argv[1],region_name='eu-west-1')\n\
        for at in sys.argv[2:]:\n\
        \x20 a=c.get_images(StreamName='gauge',ImageSelectorType='PRODUCER_TIMESTAMP',Format='JPEG',SamplingInterval=3000,\
        StartTimestamp=int(at)/1000,EndTimestamp=int(at)/1000+0.001)\n\
        \x20 print(a['Images'][0]['ImageContent'])";
    let mut command = Command::new(python);
    command
        .args(["-c", program, &format!("http://{}", gateway.api)])
        .args(kept.iter().map(|(_, at, _)| at.to_string()));
    command.envs([("AWS_ACCESS_KEY_ID", "AKIDTEST"), ("AWS_SECRET_ACCESS_KEY", "secret")]);
    let images: Vec<_> = run_ok(&mut command, BOUND).lines().map(headwater_tests::aws::unblob).collect();
    assert!(images == sent, "GetImages gives other pictures: {:?}", images.iter().map(Vec::len).collect::<Vec<_>>());
}

/// Publishes pictures in turn, two a second, until it is told to end.
fn publish(mqtt: SocketAddr, pictures: &[Vec<u8>], end: &AtomicBool) {
    let mut camera = Client::connect(mqtt, "gauge", Version::V5).unwrap();
    for (number, picture) in pictures.iter().cycle().enumerate() {
        if end.load(Ordering::Relaxed) {
            return;
        }
        assert_eq!(camera.publish(&format!("video/gauge/{number}"), picture).unwrap(), 0);
        std::thread::sleep(Duration::from_millis(600));
    }
}

#[test]
fn the_player_page_shows_a_camera_of_single_pictures() {
    need!(video::ffmpeg(), NO_FFMPEG);
    let mut player = need!(tools::browser_client("player_images.mjs"), tools::NO_BROWSER);
    let home = tempfile::tempdir().unwrap();
    let picture = |colour: &&str| jpegs(home.path(), &format!("color=0x{colour}:size=320x240"), 1).remove(0);
    let pictures: Vec<_> = COLOURS.iter().map(picture).collect();
    let (gateway, end) = (Gateway::plain(), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        scope.spawn(|| publish(gateway.mqtt, &pictures, &end));
        video::wait_for_fragments(gateway.api, "gauge", 25, BOUND);
        player.arg(format!("http://{}", gateway.console)).args(["gauge", "320", "240"]).args(COLOURS);
        let done = run(&mut player, BOUND);
        end.store(true, Ordering::Relaxed);
        done
    });
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    eprintln!("{}", said.trim());
}
