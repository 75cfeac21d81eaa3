// Opens pages in headless Chromium by its debugging protocol.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

// A page at a width and in a colour scheme: what runs in it, its errors and requests, and its end with a picture.
export const openPage = async (chromium, url, width, scheme, flags = ["--disable-gpu"]) => {
  const profile = mkdtempSync(join(tmpdir(), "browser-"));
  const options = ["--headless=new", "--no-sandbox", "--no-first-run", "--remote-debugging-port=0", ...flags];
  const browser = spawn(chromium, [...options, `--user-data-dir=${profile}`, "about:blank"]);
  const endpoint = await new Promise((found) => {
    let text = "";
    browser.stderr.on("data", (chunk) => {
      text += chunk;
      const match = text.match(/ws:\/\/127\.0\.0\.1:(\d+)/);
      if (match) found(`http://127.0.0.1:${match[1]}`);
    });
  });
  const [target] = (await (await fetch(`${endpoint}/json`)).json()).filter((one) => one.type === "page");
  const socket = new WebSocket(target.webSocketDebuggerUrl);
  await new Promise((open) => socket.addEventListener("open", open));
  const pending = new Map(), errors = [], requests = [];
  let last = 0, loaded;
  const whenLoaded = new Promise((done) => { loaded = done; });
  socket.addEventListener("message", ({ data }) => {
    const { id, method, params, result } = JSON.parse(data);
    if (id) pending.get(id)(result);
    if (method === "Runtime.exceptionThrown") errors.push(params.exceptionDetails.text);
    if (method === "Log.entryAdded" && params.entry.level !== "info") errors.push(params.entry.text);
    if (method === "Network.requestWillBeSent") requests.push(params.request.url);
    if (method === "Page.loadEventFired") loaded();
  });
  const send = (method, params = {}) => new Promise((done) => {
    pending.set(++last, done);
    socket.send(JSON.stringify({ id: last, method, params }));
  });
  const evaluate = async (expression) =>
    (await send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true })).result.value;

  for (const domain of ["Page", "Runtime", "Log", "Network"]) await send(`${domain}.enable`);
  const metrics = { width: Number(width), height: 900, deviceScaleFactor: 1, mobile: Number(width) < 600 };
  await send("Emulation.setDeviceMetricsOverride", metrics);
  await send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }] });
  await send("Page.navigate", { url });
  await whenLoaded;
  const close = async (picture) => {
    const { data } = await send("Page.captureScreenshot", { captureBeyondViewport: true });
    writeFileSync(picture, Buffer.from(data, "base64"));
    const ended = new Promise((end) => browser.once("exit", end));
    send("Browser.close"); // the browser may end before it answers
    await ended;
    rmSync(profile, { recursive: true, force: true, maxRetries: 3 });
  };
  return { evaluate, errors, requests, close };
};

// Expression of what is wrong with the layout: pairs that overlap, and how far the page is wider than the window.
export const LAYOUT = `(() => {
  const name = (node) => node.tagName + "." + (node.getAttribute("class") ?? "") + " " + node.textContent.slice(0, 40);
  const inside = (node) => node.closest(".layers, svg");
  const nodes = [...document.querySelectorAll("h1, h2, p, figure, table, pre, input, label, summary, .layers, .ends, .warning, canvas, button, select")]
    .filter((node) => !inside(node) || node.matches(".layers")).filter((node) => node.getClientRects().length);
  const boxes = nodes.map((node) => (node.closest(".scroll") ?? node).getBoundingClientRect());
  const overlaps = [];
  nodes.forEach((one, i) => nodes.slice(i + 1).forEach((other, j) => {
    if (one.contains(other) || other.contains(one)) return;
    const a = boxes[i], b = boxes[i + 1 + j];
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 1) overlaps.push(name(one) + " / " + name(other));
  }));
  return { overlaps, wider: document.documentElement.scrollWidth - innerWidth };
})()`;
