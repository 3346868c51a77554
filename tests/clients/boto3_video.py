#!/usr/bin/env python3
"""boto3's three clients for Kinesis Video against the AWS door: every operation that is offered, and what it refuses.

    python boto3_video.py http://127.0.0.1:4567 STREAM FILE

STREAM was sent by PutMedia within the last 20 seconds: at least 5 fragments of a second, H.264, 192 pixels wide, by a producer whose
clock is right, and not all in the same millisecond. FILE is Matroska of the same kind, which is sent while GetMedia reads. Needs boto3; ffmpeg where the gateway runs, for GetImages. Credentials as every AWS tool takes them. Prints
one line a check and exits 1 at the first that fails.
"""

import base64
import datetime
import json
import os
import pathlib
import re
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

os.environ.setdefault("AWS_ACCESS_KEY_ID", "AKIDTEST")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "secret")

ENDPOINT, STREAM, FILE = sys.argv[1:4]
# Parameters are checked by the gateway here, not by the client.
CONFIG = Config(parameter_validation=False, retries={"max_attempts": 1, "mode": "standard"})
RUN = uuid.uuid4().hex[:8]


def client(name, endpoint=ENDPOINT):
    return boto3.client(name, endpoint_url=endpoint, region_name="eu-west-1", config=CONFIG)


control = client("kinesisvideo")


def data(name, api):
    """A client for the endpoint that GetDataEndpoint names."""
    return client(name, control.get_data_endpoint(StreamName=STREAM, APIName=api)["DataEndpoint"])


def passed(what):
    print(f"ok  {what}", flush=True)


def refused(code, says, call, **parameters):
    try:
        call(**parameters)
    except ClientError as error:
        told = error.response["Error"]
        assert told["Code"] == code, (told, code)
        message = told.get("Message") or error.response.get("Message", "")
        assert says in message, (error.response, says)
        return
    raise AssertionError(f"{call.__name__}({parameters}) was not refused")


def get(url, status=200):
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.headers["access-control-allow-origin"] == "*", answer.headers
            assert answer.status == status, (answer.status, url)
            return answer.read()
    except urllib.error.HTTPError as error:
        assert error.code == status, (error.code, error.read(), url)
        assert error.headers["access-control-allow-origin"] == "*", error.headers
        return error.read()


def streams():
    names = [f"boto3-{RUN}-{n}" for n in range(3)]
    for n, name in enumerate(names):
        arn = control.create_stream(StreamName=name, DataRetentionInHours=n, MediaType="video/h264", Tags={"n": str(n)})["StreamARN"]
        assert arn.startswith("arn:aws:kinesisvideo:") and f":stream/{name}/" in arn, arn
    refused("ResourceInUseException", "", control.create_stream, StreamName=names[0])
    refused("InvalidArgumentException", "name", control.create_stream, StreamName="no/slash")
    about = control.describe_stream(StreamName=names[1])["StreamInfo"]
    assert (about["Status"], about["DataRetentionInHours"], about["MediaType"]) == ("ACTIVE", 1, "video/h264"), about
    assert abs((datetime.datetime.now(datetime.timezone.utc) - about["CreationTime"]).total_seconds()) < 60, about
    assert control.describe_stream(StreamARN=about["StreamARN"])["StreamInfo"] == about
    refused("ResourceNotFoundException", "no-such", control.describe_stream, StreamName="no-such")
    refused("InvalidArgumentException", "StreamName", control.describe_stream)
    found, token = [], {}
    while True:
        page = control.list_streams(MaxResults=2, StreamNameCondition={"ComparisonOperator": "BEGINS_WITH", "ComparisonValue": f"boto3-{RUN}"}, **token)
        found += [info["StreamName"] for info in page["StreamInfoList"]]
        if "NextToken" not in page:
            break
        token = {"NextToken": page["NextToken"]}
    assert found == names, found
    passed("CreateStream, DescribeStream, ListStreams")
    version = about["Version"]
    control.update_stream(StreamName=names[1], CurrentVersion=version, DeviceName="gate")
    refused("VersionMismatchException", "", control.update_stream, StreamName=names[1], CurrentVersion=version, DeviceName="late")
    about = control.describe_stream(StreamName=names[1])["StreamInfo"]
    assert (about["DeviceName"], about["MediaType"]) == ("gate", "video/h264") and about["Version"] != version
    change = {"StreamName": names[1], "DataRetentionChangeInHours": 23}
    control.update_data_retention(CurrentVersion=about["Version"], Operation="INCREASE_DATA_RETENTION", **change)
    about = control.describe_stream(StreamName=names[1])["StreamInfo"]
    assert about["DataRetentionInHours"] == 24, about
    refused("InvalidArgumentException", "24", control.update_data_retention, CurrentVersion=about["Version"],
            Operation="DECREASE_DATA_RETENTION", StreamName=names[1], DataRetentionChangeInHours=25)
    passed("UpdateStream, UpdateDataRetention")
    tags(names[1], about["StreamARN"])
    configurations(names[1])
    refused("NoDataRetentionException", "UpdateDataRetention", client("kinesis-video-archived-media").get_hls_streaming_session_url, StreamName=names[0], PlaybackMode="ON_DEMAND",
            HLSFragmentSelector={"FragmentSelectorType": "PRODUCER_TIMESTAMP", "TimestampRange": {"StartTimestamp": 0, "EndTimestamp": 1}})
    for name in names:
        control.delete_stream(StreamARN=control.describe_stream(StreamName=name)["StreamInfo"]["StreamARN"])
        refused("ResourceNotFoundException", name, control.describe_stream, StreamName=name)
    passed("DeleteStream")


def tags(name, arn):
    control.tag_stream(StreamName=name, Tags={"a": "1", "b": "2"})
    control.tag_resource(ResourceARN=arn, Tags=[{"Key": "c", "Value": "3"}])
    assert control.list_tags_for_stream(StreamName=name)["Tags"] == {"n": "1", "a": "1", "b": "2", "c": "3"}
    control.untag_stream(StreamName=name, TagKeyList=["a", "n"])
    control.untag_resource(ResourceARN=arn, TagKeyList=["c"])
    assert control.list_tags_for_resource(ResourceARN=arn)["Tags"] == {"b": "2"}
    refused("TagsPerResourceExceededLimitException", "50", control.tag_stream, StreamName=name, Tags={str(n): "" for n in range(51)})
    refused("InvalidArgumentException", "tag", control.tag_stream, StreamName=name, Tags={"aws:x": ""})
    passed("tags, by both pairs of operations")


def configurations(name):
    assert "ImageGenerationConfiguration" not in control.describe_image_generation_configuration(StreamName=name)
    assert "NotificationConfiguration" not in control.describe_notification_configuration(StreamName=name)
    assert control.describe_mapped_resource_configuration(StreamName=name)["MappedResourceConfigurationList"] == []
    storage = control.describe_stream_storage_configuration(StreamName=name)["StreamStorageConfiguration"]
    assert storage["DefaultStorageTier"] == "HOT", storage
    refused("UnknownOperationException", "WebRTC", control.create_signaling_channel, ChannelName="c")
    refused("UnknownOperationException", "edge", control.list_edge_agent_configurations, HubDeviceArn="a")
    refused("UnknownOperationException", "SNS", control.update_notification_configuration, StreamName=name)
    passed("configurations that are none, operations that are not offered")


def fragments():
    archive = data("kinesis-video-archived-media", "LIST_FRAGMENTS")
    pages = [page["Fragments"] for page in archive.get_paginator("list_fragments").paginate(StreamName=STREAM, PaginationConfig={"PageSize": 2})]
    assert all(len(page) <= 2 for page in pages)
    all_of = [one for page in pages for one in page]
    assert len(all_of) >= 5, all_of
    numbers = [one["FragmentNumber"] for one in all_of]
    assert numbers == sorted(set(numbers)), numbers
    assert all(900 <= one["FragmentLengthInMilliseconds"] <= 1100 for one in all_of), all_of
    start = all_of[1]["ProducerTimestamp"]
    some = archive.list_fragments(StreamName=STREAM, FragmentSelector={
        "FragmentSelectorType": "PRODUCER_TIMESTAMP",
        "TimestampRange": {"StartTimestamp": start, "EndTimestamp": start + datetime.timedelta(seconds=1.5)},
    })["Fragments"]
    assert [one["FragmentNumber"] for one in some] == numbers[1:3], some
    refused("InvalidArgumentException", "NextToken", archive.list_fragments, StreamName=STREAM, NextToken="x")
    passed("ListFragments")
    media = data("kinesis-video-archived-media", "GET_MEDIA_FOR_FRAGMENT_LIST").get_media_for_fragment_list(StreamName=STREAM, Fragments=numbers[1:3])
    body = media["Payload"].read()
    assert body[:4] == b"\x1a\x45\xdf\xa3" and body.count(numbers[1].encode()) == 1 and numbers[2].encode() in body
    assert b"AWS_KINESISVIDEO_PRODUCER_SIDE_TIMESTAMP" in body
    refused("ResourceNotFoundException", "99", archive.get_media_for_fragment_list, StreamName=STREAM, Fragments=["9" * 15])
    refused("InvalidArgumentException", "1000", archive.get_media_for_fragment_list, StreamName=STREAM, Fragments=[])
    passed("GetMediaForFragmentList")
    return all_of


def told_numbers(media):
    """The fragments in a piece of Matroska, by their tags."""
    return [number.decode() for number in re.findall(rb"AWS_KINESISVIDEO_FRAGMENT_NUMBER\x44\x87[^0-9]+([0-9]{20})", media)]


def get_media(all_of):
    media = data("kinesis-video-media", "GET_MEDIA")
    numbers = [one["FragmentNumber"] for one in all_of]
    at = all_of[2]
    servers = [one["ServerTimestamp"] for one in all_of]
    assert servers == sorted(servers) and servers[0] < servers[2], "all came in the same millisecond: this shows nothing"
    # Where reading begins, and which fragment comes first.
    for selector, first in [
        ({"StartSelectorType": "EARLIEST"}, 0),
        ({"StartSelectorType": "NOW"}, len(numbers) - 1),
        ({"StartSelectorType": "FRAGMENT_NUMBER", "AfterFragmentNumber": at["FragmentNumber"]}, 3),
        ({"StartSelectorType": "CONTINUATION_TOKEN", "ContinuationToken": at["FragmentNumber"]}, 3),
        ({"StartSelectorType": "PRODUCER_TIMESTAMP", "StartTimestamp": at["ProducerTimestamp"]}, 2),
        ({"StartSelectorType": "SERVER_TIMESTAMP", "StartTimestamp": at["ServerTimestamp"]}, servers.index(servers[2])),
        ({"StartSelectorType": "SERVER_TIMESTAMP", "StartTimestamp": servers[0] - datetime.timedelta(seconds=1)}, 0),
    ]:
        payload = media.get_media(StreamName=STREAM, StartSelector=selector)["Payload"]
        head = payload.read(4096)
        payload.close()
        assert head[:4] == b"\x1a\x45\xdf\xa3" and b"AWS_KINESISVIDEO_MILLIS_BEHIND_NOW" in head, selector
        assert told_numbers(head)[0] == numbers[first], (selector, first, told_numbers(head), numbers)
    refused("InvalidArgumentException", "AfterFragmentNumber", media.get_media, StreamName=STREAM, StartSelector={"StartSelectorType": "FRAGMENT_NUMBER"})
    refused("ResourceNotFoundException", "no-such", media.get_media, StreamName="no-such", StartSelector={"StartSelectorType": "NOW"})
    passed("GetMedia from every start")


def put_media(pause_s):
    """Sends FILE as a camera does whose clock is right, in pieces; the fragments that it hears are PERSISTED."""
    film = pathlib.Path(FILE).read_bytes()
    size = len(film) // 8 + 1

    def body():
        for at in range(0, len(film), size):
            yield film[at:at + size]
            time.sleep(pause_s)

    request = urllib.request.Request(f"{ENDPOINT}/putMedia", data=body(), method="POST", headers={
        "x-amzn-stream-name": STREAM, "x-amzn-fragment-timecode-type": "RELATIVE", "x-amzn-producer-start-timestamp": f"{time.time():.3f}",
        "Transfer-Encoding": "chunked", "Content-Type": "video/x-matroska"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        acks = [json.loads(line) for line in answer]
    return [ack["FragmentNumber"] for ack in acks if ack["EventType"] == "PERSISTED"]


def get_media_goes_on(all_of):
    """What comes later comes too, once each, in order, on the connection that was there before."""
    payload = data("kinesis-video-media", "GET_MEDIA").get_media(StreamName=STREAM, StartSelector={"StartSelectorType": "NOW"})["Payload"]
    media, newest = bytearray(payload.read(4096)), all_of[-1]["FragmentNumber"]
    assert told_numbers(media) == [newest], told_numbers(media)

    def read():
        # It never ends by itself.
        while True:
            media.extend(payload.read(256))

    threading.Thread(target=read, daemon=True).start()
    sent = put_media(0.3)
    until = time.monotonic() + 20
    # The continuation token is the last of a fragment's tags.
    while media.count(b"AWS_KINESISVIDEO_CONTINUATION_TOKEN") <= len(sent) and time.monotonic() < until:
        time.sleep(0.05)
    assert len(sent) >= 4, sent
    assert told_numbers(media) == [newest, *sent], (told_numbers(media), newest, sent)
    behind = [int(ms) for ms in re.findall(rb"AWS_KINESISVIDEO_MILLIS_BEHIND_NOW\x44\x87[^0-9]+([0-9]+)", media)]
    assert len(behind) == len(sent) + 1 and all(ms < 5_000 for ms in behind[1:]), behind
    passed("GetMedia goes on with what comes")


def span(all_of, first, last):
    """From the start of one fragment to the start of another, both of them included."""
    return {"StartTimestamp": all_of[first]["ProducerTimestamp"], "EndTimestamp": all_of[last]["ProducerTimestamp"]}


def hls(all_of):
    archive = data("kinesis-video-archived-media", "GET_HLS_STREAMING_SESSION_URL")
    ask = archive.get_hls_streaming_session_url
    selector = {"FragmentSelectorType": "PRODUCER_TIMESTAMP", "TimestampRange": span(all_of, 1, 3)}
    url = ask(StreamName=STREAM, PlaybackMode="ON_DEMAND", HLSFragmentSelector=selector, DisplayFragmentTimestamp="ALWAYS")["HLSStreamingSessionURL"]
    base = url.rsplit("/", 1)[0]
    master = get(url).decode()
    assert "CODECS=\"avc1." in master and "RESOLUTION=192x108" in master, master
    playlist = get(f"{base}/{master.splitlines()[-1]}").decode()
    assert playlist.count("#EXTINF") == 3 and "#EXT-X-ENDLIST" in playlist and playlist.count("PROGRAM-DATE-TIME") == 3, playlist
    assert "#EXT-X-DISCONTINUITY\n" not in playlist
    init = playlist.split('#EXT-X-MAP:URI="')[1].split('"')[0]
    assert get(f"{base}/{init}")[4:8] == b"ftyp"
    link = next(line for line in playlist.splitlines() if line.startswith("getMP4MediaFragment"))
    assert get(f"{base}/{link}")[4:8] == b"moof"
    outside = link.replace(all_of[1]["FragmentNumber"], all_of[0]["FragmentNumber"])
    assert b"not of this session" in get(f"{base}/{outside}", 404), "a session sees its own range"
    token = url.split("SessionToken=")[1]
    forged = url.replace(token, token[:-2] + ("aa" if token[-2:] != "aa" else "bb"))
    assert b"SessionToken" in get(forged, 403) and b"SessionToken" in get(url.split("?")[0], 403)
    two = ask(StreamName=STREAM, PlaybackMode="ON_DEMAND", HLSFragmentSelector=selector, MaxMediaPlaylistFragmentResults=2)["HLSStreamingSessionURL"]
    assert get(two.replace("Master", "Media")).decode().count("#EXTINF") == 2
    always = ask(StreamName=STREAM, PlaybackMode="ON_DEMAND", HLSFragmentSelector=selector, DiscontinuityMode="ALWAYS")["HLSStreamingSessionURL"]
    assert get(always.replace("Master", "Media")).decode().count("#EXT-X-DISCONTINUITY\n") == 2
    live = get(ask(StreamName=STREAM)["HLSStreamingSessionURL"].replace("Master", "Media")).decode()
    assert live.count("#EXTINF") == 5 and "ENDLIST" not in live and "#EXT-X-DISCONTINUITY-SEQUENCE" in live, live
    replay = dict(selector, TimestampRange={"StartTimestamp": all_of[0]["ProducerTimestamp"]})
    replayed = get(ask(StreamName=STREAM, PlaybackMode="LIVE_REPLAY", HLSFragmentSelector=replay)["HLSStreamingSessionURL"].replace("Master", "Media")).decode()
    assert 3 <= replayed.count("#EXTINF") <= 4 and all_of[0]["FragmentNumber"] in replayed, replayed
    wrong_ranges(ask, "HLSFragmentSelector", all_of)
    refused("UnsupportedStreamMediaTypeException", "MPEG_TS", ask, StreamName=STREAM, ContainerFormat="MPEG_TS")
    refused("InvalidArgumentException", "5000", ask, StreamName=STREAM, MaxMediaPlaylistFragmentResults=5001)
    passed("GetHLSStreamingSessionURL, its pages and its limits")


def wrong_ranges(ask, name, all_of):
    whole = span(all_of, 0, 1)
    times = {"FragmentSelectorType": "PRODUCER_TIMESTAMP", "TimestampRange": whole}
    day = dict(times, TimestampRange={"StartTimestamp": 1, "EndTimestamp": 86402})
    backwards = dict(times, TimestampRange={"StartTimestamp": whole["EndTimestamp"], "EndTimestamp": whole["StartTimestamp"]})
    future = {"FragmentSelectorType": "SERVER_TIMESTAMP", "TimestampRange": dict(whole, EndTimestamp=whole["StartTimestamp"] + datetime.timedelta(hours=20))}
    for says, more in [
        ("FragmentSelectorType", {"PlaybackMode": "ON_DEMAND"}),
        ("LIVE", {"PlaybackMode": "LIVE", name: times}),
        ("24 hours", {"PlaybackMode": "ON_DEMAND", name: day}),
        ("StartTimestamp", {"PlaybackMode": "ON_DEMAND", name: backwards}),
        ("past", {"PlaybackMode": "ON_DEMAND", name: future}),
        ("EndTimestamp", {"PlaybackMode": "ON_DEMAND", name: dict(times, TimestampRange={"StartTimestamp": 1})}),
        ("300", {"Expires": 299}),
        ("43200", {"Expires": 43201}),
    ]:
        refused("InvalidArgumentException", says, ask, StreamName=STREAM, **more)
    nothing = dict(times, TimestampRange={"StartTimestamp": 1, "EndTimestamp": 2})
    refused("ResourceNotFoundException", "no fragment", ask, StreamName=STREAM, PlaybackMode="ON_DEMAND", **{name: nothing})


def dash(all_of):
    archive = data("kinesis-video-archived-media", "GET_DASH_STREAMING_SESSION_URL")
    ask = archive.get_dash_streaming_session_url
    selector = {"FragmentSelectorType": "PRODUCER_TIMESTAMP", "TimestampRange": span(all_of, 1, 3)}
    url = ask(StreamName=STREAM, PlaybackMode="ON_DEMAND", DASHFragmentSelector=selector)["DASHStreamingSessionURL"]
    manifest = get(url).decode()
    assert 'type="static"' in manifest and "SegmentTimeline" in manifest and 'codecs="avc1.' in manifest, manifest
    live = get(ask(StreamName=STREAM)["DASHStreamingSessionURL"]).decode()
    assert 'type="dynamic"' in live and "minimumUpdatePeriod" in live, live
    token = url.split("SessionToken=")[1]
    assert b"another kind" in get(f"{url.split('/dash/')[0]}/hls/v1/getHLSMasterPlaylist.m3u8?SessionToken={token}", 403)
    wrong_ranges(ask, "DASHFragmentSelector", all_of)
    refused("InvalidArgumentException", "5000", ask, StreamName=STREAM, MaxManifestFragmentResults=0)
    refused("InvalidArgumentException", "DisplayFragmentNumber", ask, StreamName=STREAM, DisplayFragmentNumber="ALWAYS")
    passed("GetDASHStreamingSessionURL")


def clip(all_of):
    archive = data("kinesis-video-archived-media", "GET_CLIP")
    selector = {"FragmentSelectorType": "PRODUCER_TIMESTAMP", "TimestampRange": span(all_of, 1, 3)}
    answer = archive.get_clip(StreamName=STREAM, ClipFragmentSelector=selector)
    body = answer["Payload"].read()
    assert answer["ContentType"] == "video/mp4" and body[4:8] == b"ftyp" and body.count(b"moof") == 3, answer
    refused("InvalidArgumentException", "24 hours", archive.get_clip, StreamName=STREAM,
            ClipFragmentSelector=dict(selector, TimestampRange={"StartTimestamp": 5, "EndTimestamp": 1e6}))
    refused("ResourceNotFoundException", "no fragment", archive.get_clip, StreamName=STREAM,
            ClipFragmentSelector=dict(selector, TimestampRange={"StartTimestamp": 1, "EndTimestamp": 2}))
    passed("GetClip")


def images(all_of):
    archive = data("kinesis-video-archived-media", "GET_IMAGES")
    start = all_of[0]["ProducerTimestamp"]
    ask = {"StreamName": STREAM, "ImageSelectorType": "PRODUCER_TIMESTAMP", "StartTimestamp": start,
           "EndTimestamp": start + datetime.timedelta(seconds=2), "SamplingInterval": 500}
    page = archive.get_images(Format="JPEG", FormatConfig={"JPEGQuality": "50"}, MaxResults=3, **ask)
    assert len(page["Images"]) == 3 and "NextToken" in page, page.keys()
    rest = archive.get_images(Format="JPEG", MaxResults=3, NextToken=page["NextToken"], **ask)
    assert len(rest["Images"]) == 2 and "NextToken" not in rest, rest.keys()
    pictures = [base64.b64decode(one["ImageContent"]) for one in page["Images"] + rest["Images"]]
    assert all(one[:2] == b"\xff\xd8" for one in pictures) and len(set(pictures)) == 5, "five different pictures"
    times = [one["TimeStamp"] for one in page["Images"]]
    assert times == [start + datetime.timedelta(milliseconds=500 * n) for n in range(3)], times
    png = archive.get_images(Format="PNG", WidthPixels=64, HeightPixels=36, MaxResults=1, **ask)["Images"][0]
    png = base64.b64decode(png["ImageContent"])
    assert png[:4] == b"\x89PNG" and struct.unpack(">II", png[16:24]) == (64, 36)
    nothing = archive.get_images(Format="JPEG", **dict(ask, StartTimestamp=1, EndTimestamp=1))["Images"]
    assert [one["Error"] for one in nothing] == ["NO_MEDIA"], nothing
    for says, more in [("200", {"SamplingInterval": 199}), ("JPEG or PNG", {"Format": "GIF"}), ("100", {"MaxResults": 101}),
                       ("300 seconds", {"EndTimestamp": start + datetime.timedelta(seconds=301)}), ("3840", {"WidthPixels": 3841})]:
        refused("InvalidArgumentException", says, archive.get_images, **{**ask, "Format": "JPEG", **more})
    passed("GetImages")


def table():
    """docs/video.md has a line for every operation that boto3's three clients have."""
    page = pathlib.Path(__file__).parents[2].joinpath("docs/video.md").read_text()
    listed = {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in page.splitlines() if line.startswith("| kinesis")}
    names = ("kinesisvideo", "kinesis-video-media", "kinesis-video-archived-media")
    known = {(name, operation) for name in names for operation in client(name).meta.service_model.operation_names}
    assert listed == known, listed ^ known
    passed("the table of docs/video.md is boto3's")


table()
streams()
refused("InvalidArgumentException", "APIName", control.get_data_endpoint, StreamName=STREAM, APIName="GET_SOMETHING")
passed("GetDataEndpoint")
found = fragments()
hls(found)
dash(found)
get_media(found)
clip(found)
images(found)
get_media_goes_on(found)
print("all passed")
