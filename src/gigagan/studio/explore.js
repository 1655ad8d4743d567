// The plane of the Explore tab: a frame is asked for while the pointer moves, one at a time, the newest place next;
// where it rests, a larger one. Arrow keys move too.
(() => {
  const REST_MS = 250;
  const STEP = 0.04;
  let busy = false;
  let wanted = null;
  let rest = 0;

  const clip = (v) => Math.min(1, Math.max(0, v));

  async function draw(pad, x, y, size) {
    const started = performance.now();
    const note = pad.parentElement.querySelector(".note");
    const place = `x=${x.toFixed(4)}&y=${y.toFixed(4)}&size=${size}`;
    const answer = await fetch(`explore/${pad.dataset.plane}?${place}`).catch(() => null);
    if (!answer || !answer.ok) {
      note.textContent = answer ? await answer.text() : "the studio doesn't answer; is it still running?";
      return;
    }
    note.textContent = "";
    const url = URL.createObjectURL(await answer.blob());
    const img = pad.querySelector("img");
    const old = img.src;
    img.src = url;
    await img.decode().catch(() => {});
    if (old.startsWith("blob:")) URL.revokeObjectURL(old);
    Object.assign(pad.dataset, { ms: Math.round(performance.now() - started), size, drawn: `${x.toFixed(4)},${y.toFixed(4)}` });
    pad.dataset.frames = Number(pad.dataset.frames || 0) + 1;
  }

  async function next(pad) {
    if (busy || !wanted) return;
    busy = true;
    while (wanted) {
      const [x, y, size] = wanted;
      wanted = null;
      await draw(pad, x, y, size).catch(() => {});
    }
    busy = false;
  }

  function go(pad, x, y) {
    pad.dataset.x = x = clip(x);
    pad.dataset.y = y = clip(y);
    const dot = pad.querySelector(".dot");
    dot.style.left = `${100 * x}%`;
    dot.style.top = `${100 * y}%`;
    pad.setAttribute("aria-valuetext", `${Math.round(100 * x)}% across, ${Math.round(100 * y)}% down`);
    wanted = [x, y, 0];
    next(pad);
    clearTimeout(rest);
    rest = setTimeout(() => {
      wanted = [x, y, 512];
      next(pad);
    }, REST_MS);
  }

  function follow(event) {
    const pad = event.target.closest && event.target.closest("#pad");
    if (!pad) return;
    const box = pad.getBoundingClientRect();
    go(pad, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }

  document.addEventListener("pointermove", follow);
  document.addEventListener("pointerdown", follow); // a tap of a finger is no move

  document.addEventListener("keydown", (event) => {
    const pad = event.target.closest && event.target.closest("#pad");
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!pad || !way) return;
    event.preventDefault();
    go(pad, Number(pad.dataset.x) + STEP * way[0], Number(pad.dataset.y) + STEP * way[1]);
  });
})();
