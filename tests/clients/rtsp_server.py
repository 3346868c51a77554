#!/usr/bin/python3
"""An IP camera for tests: an RTSP server by GStreamer, H.264 with AAC at rtsp://127.0.0.1:PORT/cam.

usage: rtsp_server.py PORT [--stall-after SECONDS] [USER PASSWORD]

With --stall-after the first time that it is played pictures stop after so many seconds; sound and reports go on. Prints "stalled".

Debian: gir1.2-gst-rtsp-server-1.0 python3-gi gstreamer1.0-plugins-{good,bad,ugly} gstreamer1.0-libav. Prints "ready".
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

PIPELINE = (
    "( videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=10/1 ! x264enc tune=zerolatency"
    " speed-preset=ultrafast key-int-max=10 ! identity name=pictures ! rtph264pay name=pay0 pt=96 config-interval=-1"
    " audiotestsrc is-live=true ! audio/x-raw,rate=48000,channels=1 ! avenc_aac ! rtpmp4gpay name=pay1 pt=97 )"
)


def stall(factory, after_s):
    """Drops the pictures of the first media that the factory makes."""
    made = []

    def configure(_, media):
        made.append(media)
        if len(made) > 1:
            return
        began = None

        def look(pad, info):
            nonlocal began
            began = began or GLib.get_monotonic_time()
            if GLib.get_monotonic_time() - began < after_s * 1_000_000:
                return Gst.PadProbeReturn.OK
            if len(made) == 1:
                made.append(None)
                print("stalled", flush=True)
            return Gst.PadProbeReturn.DROP

        pictures = media.get_element().get_by_name("pictures")
        pictures.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, look)

    factory.connect("media-configure", configure)


def main():
    port, who = sys.argv[1], sys.argv[2:]
    stall_after_s = None
    if who[:1] == ["--stall-after"]:
        stall_after_s, who = float(who[1]), who[2:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer(service=port, address="127.0.0.1")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(PIPELINE)
    factory.set_shared(True)
    if stall_after_s is not None:
        stall(factory, stall_after_s)
    if who:
        auth = GstRtspServer.RTSPAuth()
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        token = GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_digest(who[0], who[1], token)
        server.set_auth(auth)
        permissions = GstRtspServer.RTSPPermissions()
        permissions.add_role("user")
        for permission in ("media.factory.access", "media.factory.construct"):
            permissions.add_permission_for_role("user", permission, True)
        factory.set_permissions(permissions)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print("ready", flush=True)
    GLib.MainLoop().run()


main()
