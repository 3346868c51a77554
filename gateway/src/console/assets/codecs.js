// What a browser can do with a stream, and what a codec is called.

const NAMES = { h264: "H.264", hevc: "H.265", h265: "H.265", av1: "AV1", mjpeg: "Motion JPEG", vp9: "VP9" };

export const codecName = (video) => NAMES[video?.toLowerCase()] ?? video ?? "unknown";

const source = () => globalThis.ManagedMediaSource ?? globalThis.MediaSource;

/** "film": HLS plays it. "images": pictures one by one. "none": this browser lacks the decoder, the gateway may have one. */
export function wayToShow(stream) {
  if (!stream.playable) return "images";
  if (!stream.codecs) return "film";
  const type = `video/mp4; codecs="${stream.codecs}"`;
  const plays = source()?.isTypeSupported(type) ?? document.createElement("video").canPlayType(type) !== "";
  return plays ? "film" : "none";
}

export function cannotPlay(stream, besidePictures) {
  const name = codecName(stream.video);
  const others = name === "H.265" ? "Safari and VLC can" : "Another browser or VLC can";
  const instead = besidePictures ? "so here are single pictures of it. " : "";
  return `This browser cannot play ${name}, the format of this camera${instead ? `, ${instead}` : ". "}${others}: download a clip, or set the camera to H.264.`;
}
