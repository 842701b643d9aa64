import react from '@vitejs/plugin-react';
import { defineConfig } from 'vite';
import { devBackend } from './dev-backend';

// `PORT=3301 make react` finds what `PORT=3301 make run` has started. Vite hands what begins with VITE_ to the page.
const port = process.env.PORT || '3001';
process.env.VITE_GATEWAY_PORT = port;

export default defineConfig({
  plugins: [react(), devBackend(process.env.GATEWAY_URL ?? `http://127.0.0.1:${port}`)],
  // The client is a link to ../client. As installed from a registry, it would need none of this.
  resolve: { preserveSymlinks: true },
  optimizeDeps: { exclude: ['chat3-gateway-client'], include: ['socket.io-client'] },
});
