// The list of streams: which are live, when each had its last picture, which one is watched.

import { codecName } from "./codecs.js";
import { span } from "./times.js";

/** `choose(name)` is called when the reader picks one. */
export function streamList(list, choose) {
  const items = new Map();

  function add(name) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    const parts = ["dot", "name", "when", "about"].map((kind) => {
      const part = document.createElement(kind === "dot" ? "i" : "span");
      part.className = kind;
      return part;
    });
    parts[0].setAttribute("aria-hidden", "true");
    parts[1].textContent = name;
    button.append(...parts);
    button.addEventListener("click", () => choose(name));
    item.append(button);
    list.append(item);
    items.set(name, { item, button, when: parts[2], about: parts[3] });
  }

  return {
    show(streams, watched, now) {
      const names = new Set(streams.map(({ name }) => name));
      for (const [name, { item }] of items) {
        if (!names.has(name)) item.remove();
        if (!names.has(name)) items.delete(name);
      }
      for (const stream of streams) {
        if (!items.has(stream.name)) add(stream.name);
        const { button, when, about } = items.get(stream.name);
        button.classList.toggle("is-live", stream.live);
        button.setAttribute("aria-current", String(stream.name === watched));
        when.textContent = lastPicture(stream, now);
        about.textContent = stream.width ? `${codecName(stream.video)}, ${stream.width} × ${stream.height}` : codecName(stream.video);
      }
    },
  };
}

function lastPicture({ live, newest_ms }, now) {
  if (live) return "Live";
  if (!newest_ms) return "None yet";
  return `${span(now - newest_ms).split(" ").slice(0, 2).join(" ")} ago`;
}
