// Preloaded into servers for tests (`node --require`): whatever they listen on, they listen on loopback alone.
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
  const first = args[0];
  if (first !== null && typeof first === "object" && first.port !== undefined) first.host = "127.0.0.1";
  else if (typeof first === "string" || typeof first === "number") {
    const callback = args.find((arg) => typeof arg === "function");
    args = [{ port: Number(first), host: "127.0.0.1" }, ...(callback ? [callback] : [])];
  }
  return listen.apply(this, args);
};
