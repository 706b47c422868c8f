import { svelte } from "@sveltejs/vite-plugin-svelte";
import tailwindcss from "@tailwindcss/vite";
import { defineConfig } from "vite";

// The node to develop against: `CFDNODE=http://127.0.0.1:8002 npm run dev`.
const node = process.env.CFDNODE ?? "http://127.0.0.1:8002";

export default defineConfig({
  base: "./",
  plugins: [svelte(), tailwindcss()],
  build: {
    outDir: "../static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0, // the content policy lets nothing inline
    modulePreload: false,
    license: { fileName: "licences.txt" },
    chunkSizeWarningLimit: 700,
  },
  server: {
    host: "127.0.0.1",
    proxy: { "/api": { target: node, changeOrigin: true, ws: true, headers: { origin: node } } },
  },
});
