// Draws the student's pictures: noise of two seeds and the place between them, and a class or prompt.
const at = (id) => document.getElementById(id);
const controls = { from: at("from"), to: at("to"), between: at("between"), choice: at("choice") };
const state = at("state"), student = at("student"), teacher = at("teacher");
const contextOf = (canvas) => canvas.getContext("2d", { willReadFrequently: true }); // small pictures stay off the GPU
const size = (shape) => shape.reduce((product, side) => product * side, 1);
const fetched = async (name) => {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response;
};
const floats = async (name) => new Float32Array(await (await fetched(name)).arrayBuffer());

const settings = await (await fetched("demo.json")).json();
const noise = await floats("noise.bin"), conditions = await floats("conditions.bin");
const picturesOfTeacher = settings.teacher_seeds
  ? await createImageBitmap(await (await fetched("teacher.png")).blob()) : null;
const perStep = size(settings.noise[0].shape), perSeed = perStep * settings.noise.length;

// WebGPU where there is a device that runs the network, WebAssembly else.
const open = async (provider, file) => {
  const ort = await import(`./runtime/${file}`);
  ort.env.wasm.wasmPaths = new URL("runtime/", location.href).href;
  ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create("model/model.onnx", { executionProviders: [provider] });
  return { ort, session, run: (feeds) => session.run(feeds) };
};
const adapter = navigator.gpu ? await navigator.gpu.requestAdapter().catch(() => null) : null;
let network, device = "WebAssembly";
if (adapter) {
  try {
    network = await open("webgpu", "ort.webgpu.min.mjs");
    device = "WebGPU";
  } catch (error) {
    console.info(`WebGPU does not run this network: ${error.message}`);
  }
}
network ??= await open("wasm", "ort.wasm.min.mjs");
const threads = device === "WebAssembly" ? network.ort.env.wasm.numThreads : 0;
const place = device + (threads > 1 ? `, ${threads} threads` : "");

// The noise of one step on the arc between two seeds: of a seed alone exactly its own.
const noiseBetween = (from, to, part, step) => {
  const of = (seed) => noise.subarray(seed * perSeed + step * perStep, seed * perSeed + (step + 1) * perStep);
  const a = of(from), b = of(to);
  if (part === 0 || from === to) return a.slice();
  if (part === 1) return b.slice();
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < perStep; i += 1) { ab += a[i] * b[i]; aa += a[i] * a[i]; bb += b[i] * b[i]; }
  const angle = Math.acos(Math.min(1, Math.max(-1, ab / Math.sqrt(aa * bb))));
  const [left, right] = [Math.sin((1 - part) * angle) / Math.sin(angle), Math.sin(part * angle) / Math.sin(angle)];
  return a.map((value, i) => left * value + right * b[i]);
};

const inputsOf = ({ from, to, part, choice }) => {
  const inputs = {};
  settings.noise.forEach(({ name, shape }, step) => {
    inputs[name] = new network.ort.Tensor("float32", noiseBetween(from, to, part, step), [1, ...shape]);
  });
  let start = 0;
  for (const { name, shape } of settings.conditions) {
    const length = size(shape);
    const row = conditions.slice(start + choice * length, start + (choice + 1) * length);
    inputs[name] = new network.ort.Tensor("float32", row, [1, ...shape]);
    start += length * settings.choices.length;
  }
  return inputs;
};

// Pixels as `onestep sample` writes them: x * 127.5 + 128 in float32, clipped and truncated.
const pixelsOf = ({ data, dims: [, channels, height, width] }) => {
  const image = new ImageData(width, height), area = height * width;
  for (let i = 0; i < area; i += 1) {
    for (let c = 0; c < 3; c += 1) {
      const value = data[(channels === 1 ? 0 : c) * area + i];
      image.data[4 * i + c] = Math.trunc(Math.min(255, Math.max(0, Math.fround(Math.fround(value * 127.5) + 128))));
    }
    image.data[4 * i + 3] = 255;
  }
  return image;
};

const seedIn = (input) => {
  const seed = Math.trunc(Number(input.value));
  return Number.isFinite(seed) ? Math.min(settings.seeds - 1, Math.max(0, seed)) : 0;
};
const read = () => {
  const from = seedIn(controls.from), to = seedIn(controls.to), part = Number(controls.between.value);
  const nearest = part < 0.5 ? from : to, chosen = controls.choice?.value ?? "";
  return { from, to, part, nearest, choice: chosen === "" ? settings.own[nearest] : Number(chosen) };
};

const durations = [];
let drawing = null, again = false;
const drawOnce = async () => {
  const wanted = read(), started = performance.now();
  const { images } = await network.run(inputsOf(wanted));
  contextOf(student).putImageData(pixelsOf(images), 0, 0);
  durations.push(performance.now() - started);
  if (durations.length > 20) durations.shift();
  describe(wanted);
};
// One picture at a time; what was asked for meanwhile is drawn next, and only the last of it.
const draw = () => {
  again = true;
  drawing ??= (async () => {
    try {
      while (again) {
        again = false;
        await drawOnce();
      }
    } catch (error) {
      state.textContent = `The picture could not be drawn: ${error.message}`;
    } finally {
      drawing = null;
    }
  })();
  return drawing;
};

const describe = ({ from, to, part, nearest, choice }) => {
  const named = settings.choices.length ? `, ${settings.choices[choice]}` : "";
  const seeds = part === 0 || from === to ? `seed ${from}` : part === 1 ? `seed ${to}`
    : `${Math.round(100 * part)} % of the way from seed ${from} to ${to}`;
  at("drawn").textContent = seeds + named;
  student.setAttribute("aria-label", `Picture of the student, ${seeds}${named}`);
  controls.between.setAttribute("aria-valuetext", seeds);
  const mean = durations.reduce((sum, one) => sum + one, 0) / durations.length;
  at("speed").textContent = `${mean.toFixed(1)} ms a picture, ${Math.round(1000 / mean)} pictures a second (${place})`;
  if (!teacher) return;
  const { width, height } = teacher, context = contextOf(teacher);
  const known = nearest < settings.teacher_seeds;
  context.clearRect(0, 0, width, height);
  if (known) context.drawImage(picturesOfTeacher, choice * width, nearest * height, width, height, 0, 0, width, height);
  const text = known ? `seed ${nearest}${named}` : `none of seed ${nearest}: its seeds are 0 to ${settings.teacher_seeds - 1}`;
  at("beside").textContent = text;
  teacher.setAttribute("aria-label", `Picture of the teacher, ${text}`);
};

for (const input of Object.values(controls)) input?.addEventListener("input", draw);
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
const follow = (event) => {
  const box = student.getBoundingClientRect();
  controls.between.value = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  draw();
};
student.addEventListener("pointerdown", follow);
student.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });

const forward = () => {
  const to = seedIn(controls.to);
  controls.from.value = to;
  controls.to.value = (to + 1) % settings.seeds;
  controls.between.value = 0;
};
at("next").addEventListener("click", () => { forward(); draw(); });
let walking = false;
at("walk").addEventListener("click", async () => {
  walking = !walking;
  at("walk").setAttribute("aria-pressed", walking);
  while (walking) {
    const part = Number(controls.between.value) + 0.02;
    if (part >= 1) forward(); else controls.between.value = part;
    await Promise.all([draw(), new Promise(requestAnimationFrame)]);
  }
});

await draw();
if (durations.length) {
  durations.length = 0; // the first picture also prepares the network
  state.textContent = `Ready: the network runs on this device (${place}).`;
  document.documentElement.dataset.ready = place;
  draw();
}
