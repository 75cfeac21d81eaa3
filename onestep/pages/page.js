// The two kinds of sliders: "wipe" uncovers one of two pictures, "time" shows one of many.
"use strict";
for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input");
  const layers = slider.querySelector(".layers");
  const images = [...layers.children];
  const update = () => {
    if (slider.classList.contains("wipe")) {
      layers.style.setProperty("--cut", `${input.value}%`);
      input.setAttribute("aria-valuetext", `${input.value} % of the teacher, the rest of the student`);
    } else {
      images.forEach((image, place) => { image.hidden = place !== Number(input.value); });
      const shown = images[Number(input.value)].alt;
      slider.querySelector("output").textContent = shown;
      input.setAttribute("aria-valuetext", shown);
    }
  };
  input.addEventListener("input", update);
  if (slider.classList.contains("wipe")) { // also by a finger or the mouse on the picture itself
    const follow = (event) => {
      const box = layers.getBoundingClientRect();
      input.value = Math.round(100 * (event.clientX - box.left) / box.width);
      update();
    };
    layers.addEventListener("pointerdown", follow);
    layers.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  }
  slider.classList.add("live");
  update();
}
