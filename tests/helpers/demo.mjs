// Uses a demo in headless Chromium: draws seeds and classes, measures, and prints the pixels and what is wrong as JSON.
// node --experimental-websocket demo.mjs CHROMIUM URL WIDTH SCHEME PICTURE [FLAG ...]
import { LAYOUT, openPage } from "./chromium.mjs";

const [chromium, url, width, scheme, picture, ...flags] = process.argv.slice(2);
const page = await openPage(chromium, url, width, scheme, flags.length ? flags : undefined);
const found = await page.evaluate(`(async () => {
  const at = (id) => document.getElementById(id);
  const frame = () => new Promise(requestAnimationFrame);
  const until = async (done, seconds) => {
    const end = performance.now() + 1000 * seconds;
    while (!done()) {
      if (performance.now() > end) throw new Error("it took more than " + seconds + " s: " + at("state").textContent);
      await frame();
    }
  };
  const set = (id, value) => { at(id).value = value; at(id).dispatchEvent(new Event("input")); };
  const grey = (id) => {
    const canvas = at(id), data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return [...data].filter((_, i) => i % 4 === 0);
  };
  const drawn = async (seed, choice, part = 0) => {
    set("choice", choice); set("from", seed); set("between", part);
    await until(() => at("drawn").textContent.startsWith(part ? Math.round(100 * part) + " %" : "seed " + seed)
      && (choice === "" || at("drawn").textContent.endsWith(at("choice").selectedOptions[0].textContent)), 20);
    for (let i = 0; i < 5; i += 1) await frame();
    return { student: grey("student"), teacher: grey("teacher"), drawn: at("drawn").textContent,
      beside: at("beside").textContent };
  };
  try {
    await until(() => document.documentElement.dataset.ready, 120);
    const pictures = { own: await drawn(3, ""), chosen: await drawn(5, "7") };
    const box = at("student").getBoundingClientRect();
    const press = { clientX: box.left + box.width / 2, clientY: box.top + 5, bubbles: true };
    at("student").dispatchEvent(new PointerEvent("pointerdown", press));
    await until(() => at("drawn").textContent.startsWith("50 %"), 20);
    pictures.between = { student: grey("student"), drawn: at("drawn").textContent };
    at("walk").click();
    let count = 0, last = "";
    const watch = new MutationObserver(() => { if (at("drawn").textContent !== last) { count += 1; last = at("drawn").textContent; } });
    watch.observe(at("drawn"), { childList: true, characterData: true, subtree: true });
    const started = performance.now();
    await until(() => performance.now() - started > 3000, 10);
    const rate = count / ((performance.now() - started) / 1000);
    at("walk").click();
    return { pictures, rate, ready: document.documentElement.dataset.ready, speed: at("speed").textContent,
      isolated: crossOriginIsolated };
  } catch (error) {
    return { failure: error.message };
  }
})()`);
const layout = await page.evaluate(LAYOUT);
await page.close(picture);
console.log(JSON.stringify({ ...found, ...layout, errors: page.errors, requests: page.requests }));
