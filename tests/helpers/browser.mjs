// Opens a page in headless Chromium at a width and in a colour scheme; prints what is wrong with it as JSON.
// node --experimental-websocket browser.mjs CHROMIUM URL WIDTH SCHEME PICTURE [AXE]
import { readFileSync } from "node:fs";
import { LAYOUT, openPage } from "./chromium.mjs";

const [chromium, url, width, scheme, picture, axe] = process.argv.slice(2);
const page = await openPage(chromium, url, width, scheme);
const found = await page.evaluate(`(() => {
  const slide = (id, value) => {
    const input = document.getElementById(id);
    if (!input) return null;
    input.value = value;
    input.dispatchEvent(new Event("input"));
    return input.getAttribute("aria-valuetext");
  };
  const time = slide("time", 0), wipe = slide("wipe", 30);
  const shown = document.querySelectorAll(".time .layers img:not([hidden])").length;
  return { time, wipe, shown,
    broken: [...document.images].filter((image) => !image.naturalWidth).length,
    ground: getComputedStyle(document.body).backgroundColor };
})()`);
if (axe) {
  await page.evaluate(`${readFileSync(axe, "utf8")}; 0`);
  Object.assign(found, await page.evaluate(`axe.run().then(({ passes, violations }) => ({ rules: passes.length,
    violations: violations.map((one) => [one.impact, one.id, one.nodes.map((node) => node.html)]) }))`));
}
const layout = await page.evaluate(LAYOUT);
await page.close(picture);
const requests = page.requests.filter((one) => !one.startsWith("data:"));
console.log(JSON.stringify({ ...found, ...layout, errors: page.errors, requests }));
