// Shows the values under the pointer in the caption of each curve; without it the captions keep the last values.
for (const svg of document.querySelectorAll("svg.curve")) {
  const lines = JSON.parse(svg.dataset.curve), output = svg.parentNode.querySelector("output"), rest = output.innerHTML;
  const cursor = document.createElementNS(svg.namespaceURI, "path");
  cursor.setAttribute("class", "cursor");
  svg.append(cursor);
  const show = (event) => {
    const box = svg.getBoundingClientRect(), pointed = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let at = "", place = 0, nearest = Infinity;
    output.textContent = "";
    lines.forEach((line) => {
      let best = 0;
      line.x.forEach((x, i) => { if (Math.abs(x - pointed) < Math.abs(line.x[best] - pointed)) best = i; });
      const gap = Math.abs(line.x[best] - pointed);
      if (gap < nearest) { nearest = gap; place = line.x[best]; at = line.at[best]; }
      const part = document.createElement("span");
      if (lines.length > 1) {
        const key = document.createElement("i");
        key.className = "key s" + line.colour;
        part.append(key, line.label + " ");
      }
      part.append(line.text[best]);
      output.append(part);
    });
    const first = document.createElement("span");
    first.textContent = at;
    output.prepend(first);
    cursor.setAttribute("d", "M" + place + " 10V166");
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", () => { output.innerHTML = rest; cursor.removeAttribute("d"); });
}
